"""Rows of a source before they are converted, and the reasons for which one is left out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Values = dict[str, Any]


class Rejected(Exception):
    """A row cannot be used.

    Args:
        kind: the reason in the same words for all rows, by which they are counted.
        detail: what it is in this row.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


@dataclass(frozen=True)
class Place:
    """Where a row is: lines count from 1, rows from 0."""

    file: str
    number: int
    unit: Literal["row", "line"] = "row"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


@dataclass(frozen=True)
class Record:
    """A row of a source: its values, or what is wrong with it.

    Attributes:
        last: nothing behind this place can be read, although there may be more rows.
    """

    place: Place
    values: Values | None = None
    problem: Rejected | None = None
    last: bool = False


class Store(Protocol):
    """Files by name, such as a folder or an archive."""

    name: str

    def read(self, path: str, limit: int) -> bytes | None:
        """Return the content of a file, None if there is no such file.

        Raises:
            Rejected: the path leads out of the store, or the file is larger than `limit` bytes.
        """


class Source(Protocol):
    """A file or data set with rows. It can be read several times."""

    name: str
    store: Store | None  # where the paths of images start, unless a setting says otherwise

    def records(self) -> Iterator[Record]:
        """Yield the rows from the first one on."""
