"""The file by which a stage's process tells the terminal's owner how it gets on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

METRICS = "metrics.jsonl"


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
