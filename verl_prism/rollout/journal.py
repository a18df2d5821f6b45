"""A journal: what is computed for each row is appended as it comes, and kept over a restart.

This is what a policy answers, or the log-probabilities of responses. Each line is
`{"row": i, "responses": [...]}`, in the order in which rows were finished. A file beside it holds
the settings that the lines depend on, and a journal is only continued with the same settings.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_prism.config import DataFiles
from verl_prism.data.rows import Rows, parquet_files
from verl_prism.errors import UserError
from verl_prism.files import write_atomically

Responses = list[Any]  # strings, or whatever JSON can hold
BLOCK_BYTES = 2**16


class Journal:
    """What was computed, on disk, one line per row. `done` holds the rows in it."""

    def __init__(self, file: Path, settings: Mapping[str, Any], resume: bool) -> None:
        """Open the journal; without `resume`, start an empty one.

        Raises:
            UserError: the journal to continue was written with other settings.
        """
        self.file = file
        self.done: set[int] = set()
        sidecar = settings_file(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        if resume and file.exists():
            _check_settings(file, json.loads(sidecar.read_text()), settings)
            _remove_incomplete_line(file)
            self.done = {record["row"] for record in read_journal(file)}
            return
        file.unlink(missing_ok=True)
        write_atomically(sidecar, json.dumps(settings, indent=2) + "\n")
        file.touch()

    def missing(self, rows: int) -> list[int]:
        """Return which of the rows 0 to `rows` - 1 have no responses yet."""
        return [row for row in range(rows) if row not in self.done]

    def append(self, responses: Iterable[tuple[int, Sequence[Any]]]) -> None:
        """Add (row, responses) pairs. Rows that are done already are left out."""
        with open(self.file, "a", encoding="utf-8", newline="\n") as lines:
            for row, given in responses:
                if row not in self.done:
                    record = {"row": row, "responses": given}
                    lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                    self.done.add(row)


def data_settings(key: str, data: DataFiles, rows: Rows) -> dict[str, Any]:
    """Return the settings of a journal that say what its rows are.

    key: the config key that names the files in `data`.
    """
    files = parquet_files(key, data)
    return {
        key: [str(file) for file in files],
        f"{key}, its bytes": sum(file.stat().st_size for file in files),
        "rows": len(rows),
        "digest of the rows' numbers": rows.digest(),
    }


def settings_file(journal: Path) -> Path:
    """Return the file that holds the settings of a journal."""
    return journal.with_suffix(".settings.json")


def read_journal(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a journal in the order of the file.

    Lines are read as bytes, where only "\\n" ends one: a response may contain other line
    separators, such as U+2028.
    """
    with open(file, "rb") as lines:
        for line in lines:
            yield json.loads(line)


class JournalReader(Sequence[Responses]):
    """The responses in a complete journal by row. Only the places of its lines are in memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._places: dict[int, int] = {}  # row -> position of its line
        position = 0
        with open(file, "rb") as lines:
            for line in lines:
                self._places[json.loads(line)["row"]] = position
                position += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> Responses:  # type: ignore[override]
        if row not in self._places:
            raise IndexError(row)
        with open(self._file, "rb") as lines:
            lines.seek(self._places[row])
            return json.loads(lines.readline())["responses"]


def _check_settings(file: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    # As JSON holds them, so that a tuple equals a list.
    plain = json.loads(json.dumps(wanted))
    keys = [key for key in {**saved, **plain} if saved.get(key) != plain.get(key)]
    if keys:
        changed = [f"{key}={plain.get(key)} (was {saved.get(key)})" for key in keys]
        raise UserError(
            f"prism.resume=true, but {file} was written with different settings: "
            f"{', '.join(changed)}. Use the same settings, or start from scratch without resume"
        )


def _remove_incomplete_line(file: Path) -> None:
    """Cut off what a killed process left after the last complete line."""
    with open(file, "rb+") as lines:
        position = lines.seek(0, 2)
        tail = b""
        while position and b"\n" not in tail:
            step = min(BLOCK_BYTES, position)
            position -= step
            lines.seek(position)
            tail = lines.read(step) + tail
        complete = tail.rfind(b"\n") + 1
        lines.truncate(position + complete)
