"""The files and data sets that `source` names."""

import glob
import gzip
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa

from verl_prism.config import HUB_ID
from verl_prism.data.batches import read_batches
from verl_prism.errors import UserError
from verl_prism.prepare.convert.archives import (
    SUFFIXES,
    UNREADABLE,
    Archive,
    is_archive,
    open_archive,
)
from verl_prism.prepare.convert.datasets_library import (
    builder_source,
    disk_source,
    hub_source,
    is_saved,
)
from verl_prism.prepare.convert.images import Folder
from verl_prism.prepare.convert.json_text import json_records
from verl_prism.prepare.convert.records import Place, Record, Rejected, Source, Store
from verl_prism.prepare.convert.settings import Settings
from verl_prism.prepare.outputs import check_output

JSON = (".jsonl", ".ndjson", ".json")
DATA = (*JSON, *(f"{suffix}.gz" for suffix in JSON), ".parquet")
# A folder with one of these is a data set in the form of the library datasets.
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
IGNORED = ("dataset_infos.json", "dataset_info.json")


def open_sources(settings: Settings) -> list[Source]:
    """Return the sources in the order of the list and of the names in a folder.

    Raises:
        UserError: there is no such file, or its kind is unknown.
    """
    given = (settings.source,) if isinstance(settings.source, str) else settings.source
    sources: list[Source] = []
    for name in given:
        sources += _sources(name, settings)
    paths = tuple(Path(name).expanduser().absolute() for name in given)
    check_output("output", settings.output, paths, [Path(source.name) for source in sources])
    return sources


def source_name(settings: Settings) -> str:
    """Return the name of the data set: of a file without its suffixes, of a folder, or of a hub."""
    given = settings.source if isinstance(settings.source, str) else settings.source[0]
    if HUB_ID.fullmatch(given) and not Path(given).exists():
        return given.partition("@")[0]
    path = Path(given).expanduser().absolute()
    if not isinstance(settings.source, str) or not path.exists():
        path = path.parent
    return path.name.split(".")[0] or "data"


def _sources(name: str, settings: Settings) -> list[Source]:
    path = Path(name).expanduser().absolute()
    if path.is_dir():
        return _folder(path, settings)
    if path.is_file():
        return _file(path)
    found = [Path(each) for each in sorted(glob.glob(str(path), recursive=True))]
    if found:
        return [source for each in found if each.is_file() for source in _file(each)]
    if HUB_ID.fullmatch(name):
        return [hub_source(name, settings)]
    raise UserError(f"source={name}: no such file or folder, and no org/name on the Hub")


def _folder(path: Path, settings: Settings) -> list[Source]:
    if is_saved(path):
        return [disk_source(path, settings)]
    files = [each for each in sorted(path.iterdir()) if each.name.endswith(DATA)]
    files = [each for each in files if each.is_file() and each.name not in IGNORED]
    if not files or any(each.name in METADATA for each in files):
        return [builder_source(path, settings)]
    return [source for file in files for source in _file(file)]


def _file(path: Path) -> list[Source]:
    if is_archive(path):
        return _archive(path)
    if not path.name.endswith(DATA):
        raise UserError(
            f"source={path}: unknown kind of file; use {', '.join((*DATA, *SUFFIXES))}, or "
            "a folder that the library datasets can load"
        )
    return [FileSource(path)]


def _archive(path: Path) -> list[Source]:
    archive = open_archive(path)
    names = [name for name in archive.names() if name.endswith(DATA)]
    names = [name for name in sorted(names) if not name.endswith(IGNORED)]
    if not names:
        raise UserError(f"source={path}: no {', '.join(DATA)} in this archive; is it for images=?")
    return [MemberSource(archive, name) for name in names]


class FileSource:
    """A JSON or parquet file. Images are looked for in its folder."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.store: Store | None = Folder(path.parent)
        self._path = path

    def records(self) -> Iterator[Record]:
        """Yield the rows."""
        if self._path.suffix == ".parquet":
            yield from parquet_records(self.name, self._path)
            return
        try:
            with open(self._path, "rb") as file:
                yield from _json(self.name, file)
        except OSError as error:
            raise UserError(f"{self._path}: {error.strerror or error}") from None


class MemberSource:
    """A file in an archive. Images are looked for in its folder there."""

    def __init__(self, archive: Archive, member: str) -> None:
        self.name = f"{archive.name}:{member}"
        self.store: Store | None = _Inside(archive, member.rpartition("/")[0])
        self._archive = archive
        self._member = member

    def records(self) -> Iterator[Record]:
        """Yield the rows."""
        try:
            with self._archive.open(self._member) as file:
                if not self._member.endswith(".parquet"):
                    yield from _json(self.name, file)
                    return
                with tempfile.NamedTemporaryFile(suffix=".parquet") as copy:
                    shutil.copyfileobj(file, copy)
                    copy.flush()
                    yield from parquet_records(self.name, Path(copy.name))
        except UNREADABLE as error:
            problem = Rejected("file is damaged", f"{error}; rows may be missing")
            yield Record(Place(self.name, 0), problem=problem, last=True)


class _Inside:
    """A folder in an archive; what is not there is looked for from the archive's root."""

    def __init__(self, archive: Archive, folder: str) -> None:
        self.name = archive.name
        self._archive = archive
        self._folder = folder

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a file's content; see `Store`."""
        content = None
        if self._folder:
            content = self._archive.read(f"{self._folder}/{path}", limit)
        return self._archive.read(path, limit) if content is None else content


def parquet_records(name: str, file: Path) -> Iterator[Record]:
    """Yield the rows of a parquet file. A row with a text that is not UTF-8 is broken."""
    number = 0
    try:
        for batch in read_batches(file):
            yield from _batch_records(name, number, batch)
            number += batch.num_rows
    except UserError as error:
        problem = Rejected("file is damaged", f"{error}; rows may be missing")
        yield Record(Place(name, number), problem=problem, last=True)


def _batch_records(name: str, start: int, batch: pa.RecordBatch) -> Iterator[Record]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            yield _single_record(Place(name, start + index), batch.slice(index, 1))
        return
    for index, values in enumerate(rows):
        yield Record(Place(name, start + index), values)


def _single_record(place: Place, batch: pa.RecordBatch) -> Record:
    try:
        return Record(place, batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        return Record(place, problem=Rejected("not UTF-8", f"byte {error.start}: {error.reason}"))


def _json(name: str, file: IO[bytes]) -> Iterator[Record]:
    if not name.endswith(".gz"):
        yield from json_records(name, file)
        return
    with gzip.open(file, "rb") as plain:
        yield from json_records(name, plain)  # type: ignore[arg-type]
