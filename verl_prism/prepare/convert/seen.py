"""The ids that were written, and the lines of pairs, in a temporary file: memory stays flat."""

import hashlib
import json
import pickle
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from verl_prism.prepare.convert.records import Place, Rejected, Values


class SeenIds:
    """The ids of the rows so far, with their places."""

    def __init__(self) -> None:
        self._table = _temporary("CREATE TABLE seen (id TEXT PRIMARY KEY, place TEXT) STRICT")

    def add(self, name: str, place: Place) -> None:
        """Add an id.

        Raises:
            Rejected: it was there before; with the other place.
        """
        shown = str(place).encode("utf-8", "replace").decode()
        try:
            self._table.execute("INSERT INTO seen VALUES (?, ?)", (name, shown))
        except sqlite3.IntegrityError:
            query = "SELECT place FROM seen WHERE id = ?"
            first = self._table.execute(query, (name,)).fetchone()[0]
            raise Rejected("duplicate id", f"{name} is also the id of {first}") from None


@dataclass(frozen=True)
class Line:
    """One line of pairs: where it is, its id, and the student's response."""

    place: Place
    id: str | None
    student: str


@dataclass(frozen=True)
class Group:
    """The lines with one question, its images, and one teacher's response.

    Attributes:
        plan: number of the source of the first line.
        values: the first line without its texts.
    """

    plan: int
    values: Values
    teacher: str
    lines: list[Line]


class Groups:
    """Lines of pairs, grouped by question, images and teacher."""

    def __init__(self) -> None:
        self._table = _temporary(
            "CREATE TABLE first (key BLOB PRIMARY KEY, number INTEGER, content BLOB) STRICT",
            "CREATE TABLE line (key BLOB, number INTEGER, content BLOB) STRICT",
        )
        self._number = 0

    def add(self, plan: int, key: Any, values: Values, teacher: str, line: Line) -> None:
        """Add a line. key: what the lines of a group have in common, as JSON or bytes."""
        text = json.dumps((key, teacher), default=_hashed, sort_keys=True)
        digest = hashlib.sha256(text.encode()).digest()
        self._number += 1
        first = (digest, self._number, pickle.dumps((plan, values, teacher)))
        self._table.execute("INSERT OR IGNORE INTO first VALUES (?, ?, ?)", first)
        content = pickle.dumps(line)
        self._table.execute("INSERT INTO line VALUES (?, ?, ?)", (digest, self._number, content))

    def __iter__(self) -> Iterator[Group]:
        """Yield the groups in the order of their first lines."""
        self._table.execute("CREATE INDEX by_key ON line (key, number)")
        groups = self._table.execute("SELECT key, content FROM first ORDER BY number")
        for key, content in groups:
            plan, values, teacher = pickle.loads(content)
            query = "SELECT content FROM line WHERE key = ? ORDER BY number"
            found = self._table.execute(query, (key,)).fetchall()
            yield Group(plan, values, teacher, [pickle.loads(item) for (item,) in found])


def _hashed(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def _temporary(*tables: str) -> sqlite3.Connection:
    """Return a database in a temporary file, of which a few MiB are in memory."""
    connection = sqlite3.connect("", isolation_level=None)
    connection.execute("PRAGMA journal_mode = MEMORY")
    connection.execute("BEGIN")  # one transaction, which is never committed
    for table in tables:
        connection.execute(table)
    return connection
