"""The file of the rows that a command leaves out, each with its reason."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from verl_prism.errors import UserError
from verl_prism.files import atomic_file


class Rejects:
    """Writes the rows that are left out and counts them by reason."""

    def __init__(self, file: Path, lines: IO[str]) -> None:
        self.file = file
        self.counts: Counter[str] = Counter()
        self._lines = lines

    def add(self, name: str, reason: str, **details: Any) -> None:
        """Add a row: its id, why it is left out, and what helps to find out more."""
        self.counts[reason] += 1
        record = {"id": name, "reason": reason, **details}
        self._lines.write(json.dumps(record, ensure_ascii=False) + "\n")


@contextmanager
def open_rejects(output: Path) -> Iterator[Rejects]:
    """Yield the rejects of an output; `<output>.rejects.jsonl` appears if the block succeeds."""
    file = output.with_name(f"{output.name}.rejects.jsonl")
    with text_file(file) as lines:
        yield Rejects(file, lines)


@contextmanager
def text_file(path: Path) -> Iterator[IO[str]]:
    """Yield a text file to write, which appears when the block ends without an exception.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_file(path) as unfinished,
            open(unfinished, "w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            yield file
            file.flush()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
