"""The run of `convert`."""

import glob
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from verl_prism.config import Stage
from verl_prism.data.checks.columns import check_columns
from verl_prism.data.row_files import Row, RowWriter, row_writer
from verl_prism.data.schema import COLUMNS, TRAIN_COLUMNS, schema
from verl_prism.errors import UserError
from verl_prism.prepare.convert.archives import SUFFIXES, is_archive, open_archive
from verl_prism.prepare.convert.columns import (
    HEAD,
    check_named,
    has_value,
    map_columns,
    named_columns,
)
from verl_prism.prepare.convert.images import Folder, ImageReader
from verl_prism.prepare.convert.pairs import add_line, group_row
from verl_prism.prepare.convert.records import Place, Record, Rejected, Source, Store, Values
from verl_prism.prepare.convert.rejects import CHECK_EVERY, Rejects
from verl_prism.prepare.convert.rows import CHANGED, RowMaker
from verl_prism.prepare.convert.seen import Groups, SeenIds
from verl_prism.prepare.convert.settings import DEFAULT, DEFAULT_SYSTEM_PROMPT, Settings
from verl_prism.prepare.convert.sources import open_sources, source_name
from verl_prism.prepare.progress import Progress, progress
from verl_prism.prepare.rejects import rejects_file
from verl_prism.prepare.report import Report

HEAD_BROKEN = 1000  # rows among which readable ones are looked for


@dataclass(frozen=True)
class Plan:
    """A source and how its rows are made.

    maker: None if none of the first rows is readable.
    """

    source: Source
    maker: RowMaker | None


def run(settings: Settings) -> Report:
    """Convert a source.

    Raises:
        UserError: a mistake in the settings, an unknown form, or too many broken rows.
    """
    file = rejects_file(settings.output)
    with (
        warnings.catch_warnings(),
        Rejects(file, settings.max_rejects, settings.on_error == "stop") as rejects,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        plans = _plans(settings)
        columns = {column for maker in _makers(plans) for column in maker.columns()}
        ordered = [column for column in COLUMNS if column in columns]
        with row_writer(settings.output, schema(ordered)) as writer:
            conversion = _Conversion(settings, plans, writer, rejects)
            with progress("converting", settings.limit) as bar:
                conversion.run(bar)
    return conversion.report()


class _Conversion:
    """Reads all sources and writes the rows."""

    def __init__(
        self,
        settings: Settings,
        plans: Sequence[Plan],
        writer: RowWriter,
        rejects: Rejects,
    ) -> None:
        self._settings = settings
        self._plans = plans
        self._writer = writer
        self._rejects = rejects
        self._ids = SeenIds()
        self._groups = Groups()
        self._read = 0
        self._columns: dict[str, None] = {}
        self._missing = named_columns(settings.columns)  # those without a value so far
        self._notes: Counter[str] = Counter()
        self._problems: list[str] = []

    def run(self, bar: Progress) -> None:
        """Convert all rows."""
        for number, record in islice(self._records(), self._settings.limit):
            self._read += 1
            bar.add()
            self._convert(number, record)
            if self._read % CHECK_EVERY == 0:
                self._check()
        self._write_groups()
        self._check_named()
        self._check()
        if self._writer.rows == 0:
            raise UserError(f"source={self._settings.source}: {self._nothing()}")

    def report(self) -> Report:
        """Return what was done."""
        done = {name: count for name, count in self._notes.items() if name != CHANGED}
        left_out = self._rejects.counts
        return Report(
            {"rows read": self._read, "rows written": self._writer.rows, **done},
            left_out,
            self._figures(),
            (self._writer.file, *([self._rejects.file] if left_out else [])),
            tuple(self._problems),
        )

    def _check(self) -> None:
        """Check how many of the rows so far are left out."""
        if self._rejects.counts.total() == self._read:
            self._check_named()
        self._rejects.check(self._read)

    def _check_named(self) -> None:
        """Check that the columns that settings name have a value in one of the rows so far."""
        if self._columns and self._missing:
            named = ", ".join(f"columns.{what}={name}" for name, what in self._missing.items())
            raise UserError(
                f"{named}: none of the {self._read:,} rows read has a value there; the columns are "
                f"{', '.join(self._columns)}. Correct the name, or leave the setting out"
            )

    def _nothing(self) -> str:
        if not self._rejects.counts:
            return "no rows; nothing was written"
        return f"no row can be used, see {self._rejects.file}; nothing was written"

    def _figures(self) -> dict[str, str]:
        figures: dict[str, str] = {}
        for maker in _makers(self._plans):
            form, _, columns = maker.mapped.describe().partition(": ")
            figures[f"columns of form {form}"] = columns
        used = {name for maker in _makers(self._plans) for name in maker.mapped.used()}
        unused = [name for name in self._columns if name not in used]
        if unused:
            figures["columns that are not used"] = ", ".join(unused)
        if not self._notes[CHANGED] and not self._rejects.counts:
            stages = ", ".join(_usable_by(self._plans))
            if stages:
                figures["stages that can also read the source as it is"] = stages
        return figures

    def _records(self) -> Iterator[tuple[int, Record]]:
        """Yield the rows of all sources, with the number of their source."""
        for number, plan in enumerate(self._plans):
            for record in plan.source.records():
                yield number, record

    def _convert(self, number: int, record: Record) -> None:
        maker = self._plans[number].maker
        name = None
        try:
            if record.values is None:
                raise record.problem or Rejected("unreadable row")
            if maker is None:
                raise Rejected(f"columns not known: the first {HEAD_BROKEN:,} rows are unreadable")
            self._note_columns(record.values)
            name = maker.source_id(record.values)
            maker.mapped.check_unread(record.values)
            if maker.mapped.form == "pairs":
                add_line(self._groups, number, maker, record.place, record.values)
            else:
                self._write(maker, maker.make(record.values), record.place)
        except Rejected as problem:
            self._rejects.add(record.place, name, problem)
            if record.last:
                self._problems.append(f"{record.place}: {problem}")

    def _note_columns(self, values: Values) -> None:
        self._columns.update(dict.fromkeys(values))
        for name in [name for name in self._missing if has_value(values, name)]:
            del self._missing[name]

    def _write_groups(self) -> None:
        for group in self._groups:
            maker = self._plans[group.plan].maker
            assert maker is not None
            try:
                self._write(maker, group_row(maker, group), group.lines[0].place)
            except Rejected as problem:
                for line in group.lines:
                    self._rejects.add(line.place, line.id, problem)

    def _write(self, maker: RowMaker, row: Row, place: Place) -> None:
        self._ids.add(row["id"], place)
        row["extra_info"]["index"] = self._writer.rows
        self._writer.write(row)
        self._notes.update(maker.notes)


def _plans(settings: Settings) -> list[Plan]:
    """Find the columns of each source from its first rows."""
    stores = image_stores(settings)
    prompt = _system_prompt(settings.system_prompt)
    name = settings.data_source or source_name(settings)
    plans = []
    known: dict[str, None] = {}
    for source in open_sources(settings):
        head = _head(source)
        for values in head:
            known.update(dict.fromkeys(values))
        maker = None
        if head:
            mapped = map_columns(source.name, head, settings)
            reader = _reader(source, stores, settings)
            maker = RowMaker(settings, mapped, reader, prompt, name)
        plans.append(Plan(source, maker))
    if known and all(plan.maker is not None and _is_table(plan.source) for plan in plans):
        check_named(settings.columns, known)
    return plans


def _is_table(source: Source) -> bool:
    """Return whether all rows have the same columns, some of them perhaps null."""
    return source.name.endswith(".parquet")


def _makers(plans: Iterable[Plan]) -> list[RowMaker]:
    return [plan.maker for plan in plans if plan.maker is not None]


def _head(source: Source) -> list[Values]:
    """Return the first readable rows."""
    found = islice(source.records(), HEAD_BROKEN)
    readable = (record.values for record in found if record.values is not None)
    return list(islice(readable, HEAD))


def image_stores(settings: Settings) -> list[Store]:
    """Return the folders and archives of `images`.

    Raises:
        UserError: there is no such folder or archive.
    """
    given = settings.images
    paths = () if given is None else (given,) if isinstance(given, Path) else given
    stores: list[Store] = []
    for path in paths:
        found = [path] if path.exists() else [Path(each) for each in sorted(glob.glob(str(path)))]
        if not found:
            raise UserError(f"images={path}: no such folder or archive")
        stores += [_store(each) for each in found]
    return stores


def _store(path: Path) -> Store:
    if path.is_dir():
        return Folder(path)
    if is_archive(path):
        return open_archive(path)
    raise UserError(f"images={path}: neither a folder nor an archive ({', '.join(SUFFIXES)})")


def _reader(source: Source, stores: list[Store], settings: Settings) -> ImageReader:
    own = [source.store] if source.store is not None else []
    return ImageReader(
        stores or own, settings.max_image_bytes, settings.strip_prefix, settings.add_prefix
    )


def _system_prompt(setting: str | None) -> str | None:
    """Return the text of `system_prompt`, which may be a file."""
    if setting == DEFAULT:
        return DEFAULT_SYSTEM_PROMPT.read_text(encoding="utf-8").strip()
    if setting is None or "\n" in setting:
        return setting
    path = Path(setting)
    if path.suffix != ".txt" and not _is_file(path):
        return setting
    try:
        return path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"system_prompt={setting}: {error}") from None


def _is_file(path: Path) -> bool:
    try:
        return path.expanduser().is_file()
    except (OSError, RuntimeError):  # a text that is too long for a path, or ~ of an unknown user
        return False


def _usable_by(plans: Sequence[Plan]) -> list[str]:
    """Return the stages that can read the files of all sources as they are."""
    if any(plan.maker is None or plan.maker.mapped.form != "rows" for plan in plans):
        return []
    files = [Path(plan.source.name) for plan in plans]
    stages = [stage for stage, columns in TRAIN_COLUMNS.items() if columns]
    return [stage for stage in stages if all(_fits(file, stage) for file in files)]


def _fits(file: Path, stage: Stage) -> bool:
    if file.suffix != ".parquet" or not file.is_file():
        return False
    try:
        check_columns("source", file, TRAIN_COLUMNS[stage])
    except UserError:
        return False
    return True
