"""Metrics of a stage without a trainer of verl, written to verl's loggers too."""

from collections.abc import Mapping

from verl.utils.tracking import Tracking

from verl_prism.config import Prism
from verl_prism.report.metrics import MetricsLog
from verl_prism.run_folder import RunFolder

PROJECT = "prism"  # as in trainer_configs/verl


class TrackedMetrics(MetricsLog):
    """`metrics.jsonl`, and the other loggers of `prism.loggers`."""

    def __init__(self, prism: Prism) -> None:
        super().__init__(RunFolder(prism.output))
        others = [logger for logger in prism.loggers if logger != "file"]
        config = {"prism": prism.model_dump(mode="json")}
        self._tracking = Tracking(PROJECT, prism.stage, others, config)

    def __exit__(self, *_: object) -> None:
        self._tracking.finish()
        super().__exit__()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report the metrics of a step."""
        super().step(step, metrics)
        self._tracking.log(dict(metrics), step)
