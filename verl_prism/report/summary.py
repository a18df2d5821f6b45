"""The metrics shown for each stage, on its progress line and in its final summary."""

from collections.abc import Mapping

from verl_prism.config import Stage
from verl_prism.report.metrics import read_records
from verl_prism.run_folder import RunFolder

WINDOW = 10  # steps

SHOWN: dict[Stage, dict[str, str]] = {
    "sft": {"loss": "train/loss"},
    "warmup": {
        "perception accuracy": "perception/accuracy",
        "reasoning accuracy": "reasoning/accuracy",
    },
    "align": {
        "perception margin": "discriminator/perception/margin",
        "reasoning margin": "discriminator/reasoning/margin",
        "invalid": "align/invalid",
    },
    "rlvr": {"accuracy": "reward/acc", "format": "reward/format", "length": "response_length/mean"},
    "dpo": {"accuracy": "dpo/accuracy", "margin": "dpo/margin"},
    "sample": {},
    "eval": {},
}
FILTERED = "training/filter_groups/evicted_samples"


def shown_metrics(stage: Stage, dynamic_sampling: bool) -> dict[str, str]:
    """Return the label of each metric shown for a stage, with its key in `metrics.jsonl`."""
    if stage == "rlvr" and dynamic_sampling:
        return {**SHOWN[stage], "filtered groups": FILTERED}
    return SHOWN[stage]


def summary_metrics(run: RunFolder, shown: Mapping[str, str]) -> dict[str, float | str]:
    """Return each shown metric as "first -> last".

    Both are means over at most WINDOW steps, at the start and at the end of the run.
    """
    steps = [record["data"] for record in read_records(run) if "data" in record]
    summary: dict[str, float | str] = {}
    for label, key in shown.items():
        summary[label] = _trend([metrics[key] for metrics in steps if key in metrics])
    return summary


def _trend(values: list[float]) -> str:
    if not values:
        return "never reported"
    window = max(1, min(WINDOW, len(values) // 2))
    first = sum(values[:window]) / window
    last = sum(values[-window:]) / window
    return f"{first:.3g} -> {last:.3g}"
