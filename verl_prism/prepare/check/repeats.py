"""Duplicates within a split and leaks between splits, by 64-bit digests.

Memory: 32 bytes for each row without a problem and 12 for each further image of a row, and at the
end up to twice as much for a moment. Rows that are repeated take about 300 bytes more.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_prism.prepare.check.findings import RowReason

NO_ID = 0  # digest of a row without an id


class RowKeys:
    """Digests of rows.

    Attributes:
        rows: number of each row.
        ids: digest of its id, 0 without one.
        questions: digest of its question and images.
        shared: digests that no row of another split may have.
        shared_rows: for each of these, its row as an index into `rows`.
    """

    def __init__(self) -> None:
        self.rows = array("I")
        self.ids = array("Q")
        self.questions = array("Q")
        self.shared = array("Q")
        self.shared_rows = array("I")

    def add(self, row: int, row_id: int | None, question: int, shared: Sequence[int]) -> None:
        """Add a row."""
        self.shared.extend(shared)
        self.shared_rows.extend([len(self.rows)] * len(shared))
        self.rows.append(row)
        self.ids.append(NO_ID if row_id is None else row_id)
        self.questions.append(question)

    def extend(self, other: "RowKeys", first: int) -> None:
        """Add the rows of a batch. first: number in the split of the first row of its file."""
        self.shared.extend(other.shared)
        self.shared_rows.frombytes(
            (_numbers(other.shared_rows) + len(self.rows)).astype("I").tobytes()
        )
        self.rows.frombytes((_numbers(other.rows) + first).astype("I").tobytes())
        self.ids.extend(other.ids)
        self.questions.extend(other.questions)

    def shared_by_row(self, index: int) -> Sequence[int]:
        """Return the digests in `shared` of a row."""
        bounds = np.searchsorted(_numbers(self.shared_rows), [index, index + 1])
        return self.shared[bounds[0] : bounds[1]]


@dataclass(frozen=True)
class Repeat:
    """A row that repeats another one, by split and number in it."""

    split: str
    row: int
    reason: RowReason
    other_split: str
    other_row: int


def repeats(splits: Mapping[str, RowKeys]) -> Iterator[Repeat]:
    """Yield the rows that repeat an earlier one, in the order of the splits and rows.

    A row is compared only with rows that are kept: neither broken nor repeats themselves.
    """
    shared = _repeated(np.concatenate([np.unique(keys.shared) for keys in splits.values()]))
    earlier: dict[int, tuple[str, int]] = {}
    for split, keys in splits.items():
        own: dict[int, tuple[str, int]] = {}
        search = _Search(split, earlier)
        for index in _candidates(keys, shared):
            digests = [digest for digest in keys.shared_by_row(index) if _among(digest, shared)]
            found = search.repeat(keys, index, digests)
            if found is not None:
                yield found
            else:
                for digest in digests:
                    own.setdefault(digest, (split, keys.rows[index]))
        earlier |= own


class _Search:
    """The rows of one split that were kept so far, for finding rows that repeat them."""

    def __init__(self, split: str, earlier: Mapping[int, tuple[str, int]]) -> None:
        self._split = split
        self._earlier = earlier
        self._ids: dict[int, int] = {}
        self._questions: dict[int, int] = {}

    def repeat(self, keys: RowKeys, index: int, shared: Sequence[int]) -> Repeat | None:
        """Return what a row repeats; if nothing, keep it."""
        row, row_id, question = keys.rows[index], keys.ids[index], keys.questions[index]
        if row_id != NO_ID and row_id in self._ids:
            return Repeat(self._split, row, RowReason.SAME_ID, self._split, self._ids[row_id])
        if question in self._questions:
            other = self._questions[question]
            return Repeat(self._split, row, RowReason.SAME_QUESTION, self._split, other)
        for digest in shared:
            if digest in self._earlier:
                return Repeat(self._split, row, RowReason.LEAK, *self._earlier[digest])
        self._ids[row_id] = row
        self._questions[question] = row
        return None


def _candidates(keys: RowKeys, shared: np.ndarray) -> list[int]:
    """Return the indexes of the rows that have any digest in common with another row."""
    chosen = np.zeros(len(keys.rows), bool)
    ids = _numbers(keys.ids)
    chosen |= np.isin(ids, _repeated(ids[ids != NO_ID]))
    chosen |= np.isin(_numbers(keys.questions), _repeated(_numbers(keys.questions)))
    chosen[_numbers(keys.shared_rows)[np.isin(_numbers(keys.shared), shared)]] = True
    return np.flatnonzero(chosen).tolist()


def _repeated(values: np.ndarray) -> np.ndarray:
    """Return the values that occur more than once, in order."""
    ordered = np.sort(values)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _among(value: int, ordered: np.ndarray) -> bool:
    index = np.searchsorted(ordered, np.uint64(value))
    return bool(index < len(ordered) and ordered[index] == np.uint64(value))


def _numbers(values: "array[Any]") -> np.ndarray:
    return np.frombuffer(values, values.typecode) if values else np.zeros(0, values.typecode)
