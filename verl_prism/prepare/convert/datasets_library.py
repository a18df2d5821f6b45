"""Data sets of the library `datasets`: saved to disk, a folder that it loads, or on the Hub.

They are read as a stream, and their images as the encoded bytes.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from verl_prism.config import HUB_ID
from verl_prism.errors import UserError
from verl_prism.prepare.convert.images import Folder
from verl_prism.prepare.convert.records import Place, Record, Rejected, Store
from verl_prism.prepare.convert.settings import Settings


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`."""
    files = ("state.json", "dataset_dict.json")
    return any((folder / name).is_file() for name in files)


def disk_source(folder: Path, settings: Settings) -> "LibrarySource":
    """Return the data set that `save_to_disk` wrote to a folder."""

    def load() -> Any:
        from datasets import Dataset, load_from_disk

        found = load_from_disk(str(folder))
        if isinstance(found, Dataset):
            return found.to_iterable_dataset()
        return {name: split.to_iterable_dataset() for name, split in found.items()}

    return LibrarySource(str(folder), load, settings, Folder(folder))


def builder_source(folder: Path, settings: Settings) -> "LibrarySource":
    """Return the data set that `load_dataset` finds in a folder."""

    def load() -> Any:
        from datasets import load_dataset

        return load_dataset(str(folder), settings.subset, streaming=True)

    return LibrarySource(str(folder), load, settings, Folder(folder))


def hub_source(name: str, settings: Settings) -> "LibrarySource":
    """Return a data set on the Hub, `org/name` or `org/name@revision`."""
    match = HUB_ID.fullmatch(name)
    assert match is not None
    repository = match["repo"]

    def load() -> Any:
        from datasets import load_dataset

        return load_dataset(repository, settings.subset, revision=match["revision"], streaming=True)

    return LibrarySource(name, load, settings, HubFiles(repository))


class HubFiles:
    """The files of one repository on the Hub, by the addresses that `datasets` gives to images."""

    def __init__(self, repository: str) -> None:
        self.name = repository
        self._address = re.compile(
            rf"(?:(?:zip|tar|gzip)://[^:]*::)*hf://datasets/{re.escape(repository)}@[\w./-]+/.*"
        )

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a file's content; see `Store`."""
        if not self._address.fullmatch(path) or "/../" in path:
            raise Rejected("image path leads out of its folder", f"{path[:200]} ({self.name})")
        from datasets.utils.file_utils import xopen

        try:
            with xopen(path, "rb") as file:
                content = file.read(limit + 1)
        except FileNotFoundError:
            return None
        except Exception as error:  # of the network, and of the archives there
            raise Rejected("image cannot be read", f"{path[:200]}: {error}") from None
        if len(content) > limit:
            raise Rejected("image too large", f"{path[:200]} has over {limit:,} bytes")
        return content


class LibrarySource:
    """A data set, loaded when its rows are asked for."""

    def __init__(
        self, name: str, load: Callable[[], Any], settings: Settings, store: Store
    ) -> None:
        self.name = name
        self.store: Store | None = store
        self._load = load
        self._settings = settings

    def records(self) -> Iterator[Record]:
        """Yield the rows."""
        rows = self._open()
        labels = _labels(rows)
        number = 0
        iterator = iter(rows)
        while True:
            place = Place(self.name, number)
            try:
                values = next(iterator)
            except StopIteration:
                return
            except Exception as error:  # the library and its formats raise many types
                problem = Rejected("file is damaged", f"{_short(error)}; rows may be missing")
                yield Record(place, problem=problem, last=True)
                return
            yield Record(place, values | _named(values, labels))
            number += 1

    def _open(self) -> Any:
        try:
            found = self._load()
        except Exception as error:  # of the network, of missing files, of the formats
            raise UserError(f"source={self.name}: {_short(error)}") from None
        if not isinstance(found, dict):
            return found.decode(False)
        return self._split(found).decode(False)

    def _split(self, splits: dict[str, Any]) -> Any:
        names = ", ".join(splits)
        wanted = self._settings.split
        if wanted is None and len(splits) > 1:
            raise UserError(f"source={self.name} has several splits; set split= to one of {names}")
        name = wanted or next(iter(splits))
        if name not in splits:
            raise UserError(f"split={name}: {self.name} has {names}")
        return splits[name]


def _labels(rows: Any) -> dict[str, Any]:
    """Return the columns of class labels, whose values are numbers of names."""
    features = rows.features or {}
    return {name: kind for name, kind in features.items() if hasattr(kind, "int2str")}


def _named(values: dict[str, Any], labels: dict[str, Any]) -> dict[str, Any]:
    return {
        name: kind.int2str(values[name])
        for name, kind in labels.items()
        if isinstance(values.get(name), int) and values[name] >= 0
    }


def _short(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0][:300] if lines else ''}"
