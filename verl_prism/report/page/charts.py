"""Which metrics the report draws together. All others are in its list of all metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TIMES = "timing_s/"
STEP_TIME = "timing_s/step"
PARTS_OF_OTHERS = ("timing_s/update_discriminator",)  # is in timing_s/adv


@dataclass(frozen=True)
class Chart:
    """Lines of one panel.

    lines: label -> names of the metric, of which stages have different ones. A name that ends with
        `*` stands for all metrics that start with the rest of it.
    range: what the axis shows in any case: "rate": 0 to 1; "from 0": 0.
    note: what to see in it.
    """

    title: str
    lines: Mapping[str, tuple[str, ...]]
    range: str = ""
    note: str = ""


CHARTS = (
    Chart(
        "Loss",
        {
            "policy": ("train/loss", "actor/pg_loss"),
            "discriminator": ("discriminator/loss", "loss"),
        },
    ),
    Chart(
        "Pairs that the discriminator tells apart",
        {
            "perception": ("discriminator/perception/accuracy", "perception/accuracy"),
            "reasoning": ("discriminator/reasoning/accuracy", "reasoning/accuracy"),
        },
        range="rate",
        note="At 0.5 it cannot tell teacher and policy apart. A tie counts one half.",
    ),
    Chart(
        "Margin: teacher's minus policy's score",
        {
            "perception": ("discriminator/perception/margin", "perception/margin"),
            "reasoning": ("discriminator/reasoning/margin", "reasoning/margin"),
        },
    ),
    Chart(
        "Mean scores",
        {
            "perception, teacher": (
                "discriminator/perception/teacher_score",
                "perception/teacher_score",
            ),
            "perception, policy": (
                "discriminator/perception/student_score",
                "perception/student_score",
            ),
            "reasoning, teacher": (
                "discriminator/reasoning/teacher_score",
                "reasoning/teacher_score",
            ),
            "reasoning, policy": (
                "discriminator/reasoning/student_score",
                "reasoning/student_score",
            ),
        },
    ),
    Chart(
        "Pairs with equal texts",
        {
            "perception": ("discriminator/perception/ties", "perception/ties"),
            "reasoning": ("discriminator/reasoning/ties", "reasoning/ties"),
        },
        range="rate",
    ),
    Chart(
        "Groups whose scores hardly differ",
        {
            "perception": ("align/small_spread/perception",),
            "reasoning": ("align/small_spread/reasoning",),
        },
        range="rate",
        note="If the share rises, normalization amplifies noise.",
    ),
    Chart(
        "Share of the busiest expert",
        {
            "perception": ("discriminator/busiest_expert/perception", "busiest_expert/perception"),
            "reasoning": ("discriminator/busiest_expert/reasoning", "busiest_expert/reasoning"),
            "prompt": ("discriminator/busiest_expert/prompt", "busiest_expert/prompt"),
        },
        range="rate",
        note="Only where tokens choose among experts.",
    ),
    Chart("Spread of the advantage", {"standard deviation": ("align/advantage_std",)}),
    Chart(
        "Invalid responses, by fault",
        {"all": ("align/invalid",), "": ("align/fault/*", "reward/fault/*")},
        range="from 0",
    ),
    Chart(
        "Reward",
        {
            "score": ("reward/score",),
            "accuracy": ("reward/acc", "align/accuracy"),
            "format": ("reward/format",),
        },
        range="rate",
    ),
    Chart("Held-out accuracy", {"": ("val-core/*",)}, range="rate"),
    Chart("Preference (DPO)", {"accuracy": ("dpo/accuracy",), "ties": ("dpo/ties",)}, range="rate"),
    Chart(
        "Implicit rewards (DPO)",
        {
            "margin": ("dpo/margin",),
            "teacher": ("dpo/teacher_reward",),
            "policy": ("dpo/student_reward",),
        },
    ),
    Chart(
        "Response length in tokens",
        {"mean": ("response_length/mean",), "longest": ("response_length/max",)},
    ),
    Chart("Entropy per token", {"nats": ("actor/sampled_entropy", "actor/entropy")}),
    Chart(
        "vLLM against the actor",
        {"difference of probabilities": ("actor/rollout_probs_diff",), "KL": ("actor/rollout_kl",)},
    ),
    Chart(
        "Gradient norm",
        {
            "policy": ("train/grad_norm", "actor/grad_norm"),
            "discriminator": ("discriminator/grad_norm", "grad_norm"),
        },
    ),
    Chart(
        "Learning rate",
        {"policy": ("train/lr", "actor/lr"), "discriminator": ("discriminator/lr", "lr")},
    ),
)


def chart_lines(chart: Chart, names: set[str]) -> dict[str, str]:
    """Return label -> metric of the chart's lines that a run with these metrics has."""
    found: dict[str, str] = {}
    for label, alternatives in chart.lines.items():
        for name in alternatives:
            if name.endswith("*"):
                prefix = name.removesuffix("*")
                matches = sorted(each for each in names if each.startswith(prefix))
                found |= {each.removeprefix(prefix): each for each in matches}
            elif name in names:
                found[label] = name
                break
    return found


def phases(names: set[str]) -> dict[str, str]:
    """Return label -> metric of the phases whose times add up to a step's."""
    times = sorted(name for name in names if name.startswith(TIMES) and name != STEP_TIME)
    return {name.removeprefix(TIMES): name for name in times if name not in PARTS_OF_OTHERS}


def charts_of(names: set[str]) -> list[dict[str, Any]]:
    """Return the charts of a run with these metrics, as the page's script reads them."""
    charts: list[dict[str, Any]] = []
    for chart in CHARTS:
        lines = chart_lines(chart, names)
        if lines:
            charts.append(
                {"title": chart.title, "lines": lines, "range": chart.range, "note": chart.note}
            )
    stacked = phases(names)
    if stacked:
        charts.append(
            {
                "title": "Seconds per step, by phase",
                "lines": stacked,
                "range": "from 0",
                "note": "",
                "stacked": True,
            }
        )
    return charts
