"""The file of the rows that a command leaves out, each with its reason."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from verl_prism.data.outputs import JsonLines, json_lines


class Rejects:
    """Writes the rows that are left out and counts them by reason."""

    def __init__(self, lines: JsonLines) -> None:
        self.file = lines.file
        self.counts: Counter[str] = Counter()
        self._lines = lines

    def add(self, name: str, reason: str, **details: Any) -> None:
        """Add a row: its id, why it is left out, and what helps to find out more."""
        self.counts[reason] += 1
        self._lines.add({"id": name, "reason": reason, **details})


def rejects_file(output: Path) -> Path:
    """Return the file that lists the rows that are left out of `output`."""
    return output.with_name(f"{output.name}.rejects.jsonl")


@contextmanager
def open_rejects(output: Path) -> Iterator[Rejects]:
    """Yield the rejects of an output; their file appears if the block ends without an exception.

    Raises:
        UserError: the file cannot be written.
    """
    with json_lines(rejects_file(output)) as lines:
        yield Rejects(lines)
