"""Metrics and samples of a stage without a trainer of verl, for verl's loggers."""

from collections.abc import Mapping
from typing import Any

from verl_prism.config import PROJECT, Prism
from verl_prism.report.metrics import MetricsLog
from verl_prism.run_folder import RunFolder
from verl_prism.trainer.sample_tables import Samples, SampleTables


class TrackedMetrics(MetricsLog):
    """`metrics.jsonl` and `step_samples.jsonl`, and the other loggers of `prism.loggers`."""

    def __init__(self, prism: Prism) -> None:
        super().__init__(RunFolder(prism.output))
        self._tracking = open_tracking(prism)
        self._tables = SampleTables(prism)

    def __exit__(self, *_: object) -> None:
        self._tracking.finish()
        super().__exit__()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report the metrics of a step."""
        super().step(step, metrics)
        self.result(step, metrics)

    def samples(self, step: int, samples: Samples) -> None:
        """Keep the samples of a step, after its metrics."""
        self._tables.keep(samples, step)

    def result(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send further metrics, measured after a step, to the other loggers only."""
        self._tracking.log(dict(metrics), step)


def log_results(prism: Prism, metrics: Mapping[str, float], samples: Samples) -> None:
    """Send the results of a stage that trains nothing to the other loggers, as those of step 0."""
    if prism.loggers == ["file"]:
        return
    tracking = open_tracking(prism)
    tracking.log(dict(metrics), 0)
    SampleTables(prism).send(samples, 0)
    tracking.finish()


def open_tracking(prism: Prism) -> Any:
    """Return verl's `Tracking` with the loggers of a run, without `file`."""
    from verl.utils.tracking import Tracking  # takes long

    others = [logger for logger in prism.loggers if logger != "file"]
    config = {"prism": prism.model_dump(mode="json"), "trainer": {}}  # verl reads `trainer`
    return Tracking(PROJECT, prism.stage, others, config)
