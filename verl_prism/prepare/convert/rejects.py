"""The file of the rows that are left out."""

from collections import Counter
from pathlib import Path
from typing import IO, Self

from verl_prism.data.outputs import JsonLines, writing
from verl_prism.errors import UserError
from verl_prism.prepare.convert.records import Place, Rejected

CHECK_EVERY = 1000  # rows


class Rejects:
    """Writes and counts the rows that are left out, and stops if there are too many.

    Args:
        file: JSON lines; exists only if a row is left out.
        maximum: the largest part of the rows that may be left out.
        stop: whether the first one ends the command.
    """

    def __init__(self, file: Path, maximum: float, stop: bool) -> None:
        self.file = file
        self.counts: Counter[str] = Counter()
        self._maximum = maximum
        self._stop = stop
        self._open: IO[str] | None = None
        with writing(file):
            file.unlink(missing_ok=True)

    def add(self, place: Place, name: str | None, problem: Rejected) -> None:
        """Leave out a row. name: its id, if it has one.

        Raises:
            UserError: the first broken row is to end the command.
        """
        if self._stop:
            named = f" (id {name})" if name else ""
            raise UserError(f"{place}{named}: {problem}")
        self.counts[problem.kind] += 1
        line = {"id": name, "file": place.file, place.unit: place.number, "reason": str(problem)}
        if self._open is None:
            with writing(self.file):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self._open = self.file.open("w", encoding="utf-8", errors="backslashreplace")
        JsonLines(self.file, self._open).add(line)

    def check(self, rows: int) -> None:
        """Check how many of the rows so far are left out.

        Raises:
            UserError: too many are.
        """
        count = self.counts.total()
        if count <= self._maximum * rows:
            return
        reasons = "".join(f"\n  {number:,} {kind}" for kind, number in self.counts.most_common())
        raise UserError(
            f"{count:,} of {rows:,} rows cannot be used, more than max_rejects={self._maximum}:"
            f"{reasons}\n{self.file} has each one; nothing was written"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.close()
