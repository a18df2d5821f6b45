"""The file by which a stage's process tells the terminal's owner how it gets on.

verl's file logger starts `metrics.jsonl` anew. So where a run is resumed, its earlier steps wait in a file beside it,
and the two are joined when the run ends.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from verl_prism.files import write_atomically

METRICS = "metrics.jsonl"
EARLIER = "metrics.earlier.jsonl"


class MetricsLog:
    """Appends to `metrics.jsonl`, as verl's file logger does, plus lines that name the phase that the stage is in."""

    def __init__(self, output: Path):
        self._file = open(Path(output) / METRICS, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def note(self, text: str) -> None:
        """Name the phase, e.g. "sampling the policy 120/600"."""
        self._write({"note": text})

    def total(self, steps: int) -> None:
        """Say how many steps there will be, where the configuration does not."""
        self._write({"total": steps})

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write({"step": step, "data": dict(metrics)})

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_records(output: Path) -> list[dict[str, Any]]:
    """Of the whole run, however often it was resumed: each step once."""
    return _records(output / EARLIER, output / METRICS)


def write_records(output: Path, file: Path) -> None:
    """The records of the whole run so far, to another file."""
    _write(file, read_records(output))


def keep_steps(output: Path, saved: Path, last: int) -> None:
    """Sets the steps up to `last` aside, for a run that goes on from there.

    saved: the checkpoint's copy; verl logs a step after its checkpoint, so that the copy may lack the last one.
    """
    records = _records(saved, output / EARLIER, output / METRICS)
    _write(
        output / EARLIER,
        [record for record in records if "step" in record and record["step"] <= last],
    )


def join_records(output: Path) -> None:
    """Makes one file of a resumed run's two."""
    if (output / EARLIER).exists():
        _write(output / METRICS, read_records(output))
        (output / EARLIER).unlink()


def _records(*files: Path) -> list[dict[str, Any]]:
    """Each step from the first file that has it; a line whose end was never written is left out."""
    kept: list[dict[str, Any]] = []
    for file in filter(Path.exists, files):
        seen = {record["step"] for record in kept if "step" in record}
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
        kept += [record for record in records if record.get("step") not in seen]
    return kept


def _write(file: Path, records: list[dict[str, Any]]) -> None:
    write_atomically(
        file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    )
