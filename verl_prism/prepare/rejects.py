"""The file of the rows that a command leaves out, each with its reason."""

import json
import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4


class Rejects:
    """Writes `<output>.rejects.jsonl` and counts rows by reason.

    The file appears when the block ends without an exception.
    """

    def __init__(self, output: Path) -> None:
        self.file = output.with_name(f"{output.name}.rejects.jsonl")
        self.counts: Counter[str] = Counter()
        self._unfinished = self.file.with_name(f"{self.file.name}.{uuid4().hex}.unfinished")
        self._lines = open(self._unfinished, "w", encoding="utf-8", newline="\n")  # noqa: SIM115

    def add(self, name: str, reason: str, **details: Any) -> None:
        """Add a row: its id, why it is left out, and what helps to find out more."""
        self.counts[reason] += 1
        record = {"id": name, "reason": reason, **details}
        self._lines.write(json.dumps(record, ensure_ascii=False) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        if kind is None:
            os.replace(self._unfinished, self.file)
        else:
            self._unfinished.unlink(missing_ok=True)
