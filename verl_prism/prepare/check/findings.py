"""What a pass over the rows finds, and the files that list it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from verl_prism.data.outputs import JsonLines, json_lines

EXAMPLES = 3  # places that the console shows for each reason


class RowReason(StrEnum):
    """What can be wrong with a row besides `verl_prism.data.checks.Reason`, in few words."""

    FILE = "file that cannot be read"
    EMPTY_FILE = "file without rows"
    COLUMNS = "columns missing or of a wrong type"
    NOT_UTF8 = "text that is not UTF-8"
    GARBLED = "text that was decoded wrongly"
    NO_QUESTION = "question without a text"
    NULL_STUDENT = "student response that is null"
    TOO_LONG = "too long"
    SAME_ID = "same id as another row"
    SAME_QUESTION = "same question and images as another row"
    LEAK = "image, or question without images, that is also in another split"


STUDENT_NOTE = "student response not in the format"

Fault = tuple[str, str]  # reason and text


@dataclass(frozen=True)
class Finding:
    """What is wrong with a row, or with all rows of a file from this one on.

    Attributes:
        row: number in the file, from 0.
        problems: reasons and texts of what is wrong.
        notes: reasons and texts of what is unusual.
        rows: number of rows that this concerns.
    """

    row: int
    id: str | None
    problems: list[Fault]
    notes: list[Fault] = field(default_factory=list)
    rows: int = 1


class Findings:
    """Counts findings, and writes them to a JSONL file while they come.

    Attributes:
        problems: number of problems by reason; a row can have several.
        notes: number of notes by reason.
        examples: the first places of each reason.
        rejects: number of broken rows by their first reason.
    """

    def __init__(self, listing: JsonLines | None, rejects: dict[str, JsonLines]) -> None:
        self.problems: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.rejects: Counter[str] = Counter()
        self.examples: defaultdict[str, list[str]] = defaultdict(list)
        self._listing = listing
        self._rejects = rejects

    def add(self, split: str, file: Path, finding: Finding) -> None:
        """Count and list what was found in a row of a file."""
        place = f"{file.name}, row {finding.row}"
        if finding.rows > 1:
            place = f"{file.name}, rows {finding.row} to {finding.row + finding.rows - 1}"
        for counts, faults in ((self.problems, finding.problems), (self.notes, finding.notes)):
            for reason in dict.fromkeys(reason for reason, _ in faults):
                counts[reason] += finding.rows
                if len(self.examples[reason]) < EXAMPLES:
                    self.examples[reason].append(place)
        if finding.problems:
            self.rejects[finding.problems[0][0]] += finding.rows
        self._list(split, file, finding)

    def _list(self, split: str, file: Path, finding: Finding) -> None:
        row: dict[str, object] = {"id": finding.id, "file": str(file), "row": finding.row}
        if finding.rows > 1:
            row["rows"] = finding.rows
        if self._listing is not None:
            for level, faults in (("problem", finding.problems), ("note", finding.notes)):
                for reason, text in faults:
                    self._listing.add(row | _fault(reason, text) | {"level": level})
        if finding.problems and split in self._rejects:
            self._rejects[split].add(row | _fault(*finding.problems[0]))


@contextmanager
def findings(listing: Path | None, rejects: dict[str, Path]) -> Iterator[Findings]:
    """Yield a collector of findings; its files appear when the block ends without an exception.

    listing: file for all findings. rejects: for each split, file for the first problem of each row.
    """
    with ExitStack() as stack:
        files = {split: stack.enter_context(json_lines(path)) for split, path in rejects.items()}
        main = None if listing is None else stack.enter_context(json_lines(listing))
        yield Findings(main, files)


def problem_lines(found: Findings) -> Iterable[str]:
    """Yield one line per reason, the most frequent first: the number of rows and first places."""
    for reason, count in found.problems.most_common():
        yield f"{count:,} {_rows(count)}: {reason} ({_places(found, reason, count)})"


def note_lines(found: Findings) -> Iterable[tuple[str, str]]:
    """Yield each note with the number of its rows and its first places."""
    for reason, count in found.notes.most_common():
        yield f"note: {reason}", f"{count:,} {_rows(count)} ({_places(found, reason, count)})"


def _places(found: Findings, reason: str, count: int) -> str:
    shown = found.examples[reason]
    more = len(shown) == EXAMPLES and count > EXAMPLES
    return "; ".join(shown) + ("; …" if more else "")


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _fault(reason: str, text: str) -> dict[str, str]:
    return {"reason": str(reason), "text": text}
