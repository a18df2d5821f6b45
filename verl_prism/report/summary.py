"""The metrics that a person sees of a stage: on its progress line, and first and last in its summary."""

from verl_prism.config import Prism, Stage
from verl_prism.report.metrics import read_records

WINDOW = 10

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
    "eval": {},
}
FILTERED = "training/filter_groups/evicted_samples"


def shown(prism: Prism) -> dict[str, str]:
    """Label and name in metrics.jsonl of what the stage shows."""
    dynamic = prism.stage == "rlvr" and prism.algorithm.dynamic_sampling
    return SHOWN[prism.stage] | ({"filtered groups": FILTERED} if dynamic else {})


def figures(prism: Prism) -> dict[str, float | str]:
    """Each shown metric as "first -> last": means over at most WINDOW steps at either end of the run."""
    records = [record["data"] for record in read_records(prism.output) if "data" in record]
    return {
        label: _trend([data[key] for data in records if key in data])
        for label, key in shown(prism).items()
    }


def _trend(values: list[float]) -> str:
    if not values:
        return "never reported"
    window = max(1, min(WINDOW, len(values) // 2))
    first, last = values[:window], values[-window:]
    return f"{sum(first) / window:.3g} -> {sum(last) / window:.3g}"
