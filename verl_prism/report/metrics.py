"""The metrics file, through which a stage's process reports its progress to the launcher.

verl's file logger truncates `metrics.jsonl` when it starts. Before a resume, the metrics of the
steps up to the checkpoint are therefore moved to `metrics.earlier.jsonl`. The launcher joins the
two files when the run ends.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from verl_prism.files import write_atomically
from verl_prism.run_folder import RunFolder

Record = dict[str, Any]


class MetricsLog:
    """Appends lines to `metrics.jsonl`, in the format of verl's file logger.

    Lines that verl does not write name the current phase and the number of steps.
    """

    def __init__(self, run: RunFolder) -> None:
        self._file = open(run.metrics, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def note(self, text: str) -> None:
        """Name the current phase, e.g. "sampling the policy 120/600"."""
        self._write({"note": text})

    def total(self, steps: int) -> None:
        """Report the number of steps, if the configuration does not contain it."""
        self._write({"total": steps})

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report the metrics of a step."""
        self._write({"step": step, "data": dict(metrics)})

    def _write(self, record: Record) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_records(run: RunFolder) -> list[Record]:
    """Return the records of the whole run, each step once, including steps before a resume."""
    return _read(run.earlier_metrics, run.metrics)


def write_records(run: RunFolder, target: Path) -> None:
    """Copy the records of the whole run so far to another file."""
    _write(target, read_records(run))


def keep_steps(run: RunFolder, saved: Path, last: int) -> None:
    """Move the steps up to `last` to the file of earlier metrics, before a run resumes there.

    saved: the metrics in the checkpoint. verl logs a step after it saves the step's checkpoint, so
        the last step may be missing there.
    """
    records = _read(saved, run.earlier_metrics, run.metrics)
    steps = [record for record in records if "step" in record]
    _write(run.earlier_metrics, [record for record in steps if record["step"] <= last])


def join_records(run: RunFolder) -> None:
    """Join the two metrics files of a resumed run."""
    if run.earlier_metrics.exists():
        _write(run.metrics, read_records(run))
        run.earlier_metrics.unlink()


def _read(*files: Path) -> list[Record]:
    """Return each step from the first file that contains it. An incomplete last line is skipped."""
    kept: list[Record] = []
    for file in filter(Path.exists, files):
        seen = {record["step"] for record in kept if "step" in record}
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            record = json.loads(line)
            if record.get("step") not in seen:
                kept.append(record)
    return kept


def _write(file: Path, records: list[Record]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_atomically(file, "".join(lines))
