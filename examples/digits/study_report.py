"""The tables and the picture of the study, from the results of its seeds."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t

SFT, ALIGNED, ALIGNED_GRPO = "SFT", "aligned", "aligned_GRPO"
GRPO_UPDATES, GRPO_TIME = "GRPO_equal_updates", "GRPO_equal_time"
ALIGNED_DAPO, ALIGNED_GSPO = "aligned_DAPO", "aligned_GSPO"
GRPO_SUMS, ALIGNED_GRPO_SUMS = "GRPO_sums", "aligned_GRPO_sums"
ALIGNED_LONGER = "aligned_90"
DPO, DPO_GRPO = "DPO", "DPO_GRPO"
TEACHER_SFT, TEACHER_SFT_GRPO = "teacher_SFT", "teacher_SFT_GRPO"
TEACHER_SFT_ALIGNED = "teacher_SFT_aligned"
MAIN = (
    SFT,
    ALIGNED,
    ALIGNED_GRPO,
    ALIGNED_DAPO,
    ALIGNED_GSPO,
    ALIGNED_LONGER,
    GRPO_UPDATES,
    GRPO_TIME,
    ALIGNED_GRPO_SUMS,
    GRPO_SUMS,
    DPO,
    DPO_GRPO,
    TEACHER_SFT,
    TEACHER_SFT_GRPO,
    TEACHER_SFT_ALIGNED,
)
CONTRASTS = (
    (ALIGNED_GRPO, GRPO_UPDATES),
    (ALIGNED_GRPO, GRPO_TIME),
    (ALIGNED_GRPO_SUMS, GRPO_SUMS),
    (ALIGNED, SFT),
    (ALIGNED_GRPO, ALIGNED),
    (ALIGNED_LONGER, ALIGNED),
    (ALIGNED, DPO),
    (ALIGNED_GRPO, DPO_GRPO),
    (TEACHER_SFT, ALIGNED),
    (TEACHER_SFT, ALIGNED_GRPO),
    (TEACHER_SFT_GRPO, ALIGNED_GRPO),
    (TEACHER_SFT_ALIGNED, TEACHER_SFT),
    (TEACHER_SFT_ALIGNED, TEACHER_SFT_GRPO),
    (ALIGNED_DAPO, ALIGNED_GRPO),
    (ALIGNED_GSPO, ALIGNED_GRPO),
)
COLUMNS = {  # title: kind of held-out question, mark
    "parity": ("parity", "accuracy"),
    "parity, greedy": ("parity", "greedy_accuracy"),
    "parity, grounded": ("parity", "grounded"),
    "sum": ("sum", "accuracy"),
    "sum, greedy": ("sum", "greedy_accuracy"),
    "sum, perception": ("sum", "perception"),
    "sum, reasoning": ("sum", "reasoning"),
    "sum, grounded": ("sum", "grounded"),
}
SHORT_COLUMNS = {  # title in the README: title in COLUMNS
    "parity": "parity",
    "parity, greedy": "parity, greedy",
    "parity, grounded": "parity, grounded",
    "sum": "sum",
    "sum, greedy": "sum, greedy",
    "perception": "sum, perception",
    "reasoning": "sum, reasoning",
}
SHORT_NAMES = {
    SFT: "SFT",
    ALIGNED: "aligned",
    ALIGNED_GRPO: "aligned, then GRPO",
    GRPO_UPDATES: "GRPO, as many updates",
    GRPO_TIME: "GRPO, as much time",
    TEACHER_SFT: "SFT on the teacher's texts",
}
SHORT_CONTRASTS = {
    (ALIGNED, SFT): "aligned minus SFT",
    (ALIGNED_GRPO, GRPO_UPDATES): "aligned, then GRPO, minus GRPO (as many updates)",
    (ALIGNED_GRPO, GRPO_TIME): "aligned, then GRPO, minus GRPO (as much time)",
    (TEACHER_SFT, ALIGNED_GRPO): "SFT on the teacher's texts, minus aligned, then GRPO",
}
MEASURES = {  # title: where the results of stage eval have it
    "pass@4": ("pass_at_k", "4", "mean"),
    "probe of captions": ("teacher", "probe", "perception", "accuracy", "mean"),
    "probe of reasoning": ("teacher", "probe", "reasoning", "accuracy", "mean"),
}
OPTION_COLUMNS = ("sum", "sum, greedy", "sum, perception", "sum, reasoning")
OPTIONS = {  # policy: what differs from `aligned`, for the documentation
    SFT: "no alignment: the SFT policy",
    "head": "`scoring=head`, the default and the paper's",
    "head_long": "`scoring=head`, 800 steps of warm-up",
    "head_slow": "`scoring=head`, `discriminator.lr=2e-5`",
    "head_long_slow": "`scoring=head`, 800 steps of warm-up, `discriminator.lr=2e-5`",
    "slow": "`discriminator.lr=2e-5` instead of 2e-4",
    "no_imitation": "`discriminator.imitation_coef=0`",
    "text_only": "`discriminator.upcycle.images=false`",
    "dense": "`discriminator.upcycle.routing=dense`",
    "no_warmup": "a warm-up of one step",
    "no_mismatched": "`warmup.mismatched_teachers=0`",
    "hard_negatives": "hard negatives in the warm-up",
    "span_credit": "`align.credit=span`",
    "combined": "`align.normalization=combined`, the paper's eq. 3",
    "quantile": "`align.normalization=quantile`",
    "replay": "`discriminator.replay_share=0.5`",
    "lr_1e-4": "`optim.lr=1e-4` instead of 3e-4",
    "aligned_again": "nothing: the same run once more",
    "two_updates": "`discriminator.updates_per_step=2`",
    "std_floor_1": "`align.std_floor=1`",
    "restart_15": "`discriminator.restart_every=15`",
    "accuracy_term": "`align.accuracy_weight=0.5`, which sees gold answers",
    "token_routing": "`discriminator.upcycle.routing=token`",
    "eight_experts": "`discriminator.upcycle.experts=8`",
}
MARKS = tuple(dict.fromkeys(name for _, name in COLUMNS.values()))
CONFIDENCE = 0.95
MIN_SEEDS = 3  # of an interval; that of two is 9 times as wide as their standard deviation
CURVES = {  # policy: label and color
    ALIGNED_GRPO: ("alignment, then GRPO", "#1a7f37"),
    GRPO_TIME: ("GRPO", "#b42318"),
    GRPO_UPDATES: ("GRPO", "#b42318"),
    DPO_GRPO: ("DPO, then GRPO", "#2563c9"),
    TEACHER_SFT_GRPO: ("SFT on the teacher's texts, then GRPO", "#6e6e6e"),
}
ENDS = {  # policy: label, color and marker
    SFT: ("SFT", "#111111", "o"),
    ALIGNED: ("alignment", "#1a7f37", "^"),
    ALIGNED_GRPO: ("alignment, then GRPO", "#1a7f37", "o"),
    GRPO_TIME: ("GRPO, 150 updates", "#b42318", "o"),
    DPO: ("DPO", "#2563c9", "^"),
    DPO_GRPO: ("DPO, then GRPO", "#2563c9", "o"),
    TEACHER_SFT: ("SFT on the teacher's texts", "#6e6e6e", "^"),
    TEACHER_SFT_GRPO: ("SFT on the teacher's texts, then GRPO", "#6e6e6e", "o"),
}

Seeds = Mapping[int, Mapping[str, Any]]  # by seed, the content of seed-N.json


class Interval(NamedTuple):
    """A mean, and half of the t interval over seeds; None for fewer than three seeds."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Return the interval of one value per seed."""
        half = None
        if len(values) >= MIN_SEEDS:
            quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
            half = quantile * stdev(values) / math.sqrt(len(values))
        return cls(fmean(values), half)

    def cell(self, scale: float) -> str:
        """Return `mean ± half`, both times `scale`."""
        if self.half is None:
            return f"{scale * self.mean:.1f}"
        return f"{scale * self.mean:.1f} ±{scale * self.half:.1f}"


def read_seeds(folder: Path) -> dict[int, Any]:
    """Return the results of all seeds in a folder."""
    found = {}
    for file in folder.glob("seed-*.json"):
        found[int(file.stem.removeprefix("seed-"))] = json.loads(file.read_text())
    return dict(sorted(found.items()))


def mark(policy: Mapping[str, Any], column: str) -> float:
    """Return a policy's mark in a column of the tables."""
    kind, name = COLUMNS[column]
    value: float = policy[kind][name]
    return value


def measures(results: Mapping[str, Any]) -> dict[str, float]:
    """Return what stage eval measures besides marks, from its results about one policy."""
    return {title: reduce(getitem, path, results) for title, path in MEASURES.items()}


def mean_marks(seeds: Seeds, name: str) -> list[Interval]:
    """Return the mean of each column over the seeds that have this policy."""
    policies = [seed["policies"][name] for seed in seeds.values() if name in seed["policies"]]
    return [Interval.of([mark(policy, column) for policy in policies]) for column in COLUMNS]


def differences(seeds: Seeds, name: str, against: str) -> list[Interval]:
    """Return the mean difference of each column between two policies, paired by seed."""
    pairs = []
    for seed in seeds.values():
        policies = seed["policies"]
        if name in policies and against in policies:
            pairs.append((policies[name], policies[against]))
    return [
        Interval.of([mark(own, column) - mark(other, column) for own, other in pairs])
        for column in COLUMNS
    ]


def markdown(seeds: Seeds) -> str:
    """Return the tables."""
    names = list(dict.fromkeys(name for seed in seeds.values() for name in seed["policies"]))
    options = [name for name in names if name not in MAIN]
    lines = [
        f"Seeds {', '.join(map(str, seeds))}. Rates in %, at temperature 1 unless greedy, ± the "
        "95 % interval over seeds if there are three or more. RL asks for the parity only, except "
        "in the rows with sums. Updates and minutes are those after SFT; with alignment, its "
        "warm-up is in the minutes.",
        "",
        f"| policy | {' | '.join(COLUMNS)} | updates | minutes |",
        "|---|" + "---:|" * (len(COLUMNS) + 2),
    ]
    rows = {name: _policy_cells(seeds, name) for name in MAIN if name in names}
    for name, cells in rows.items():
        lines.append(f"| {name}{_some(seeds, name)} | {' | '.join(cells)} |")
    contrasts = [pair for pair in CONTRASTS if set(pair) <= set(names)]
    lines += ["", *_difference_table(seeds, "difference", contrasts)]
    if options and ALIGNED in names:
        compared = [(name, ALIGNED) for name in options]
        lines += ["", *_difference_table(seeds, "option", compared)]
    return "\n".join(lines) + "\n\n" + measures_markdown(seeds)


def short_markdown(seeds: Seeds) -> str:
    """Return the README's table: the main policies and contrasts."""
    header = ["", *SHORT_COLUMNS, "updates"]
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(SHORT_COLUMNS) + 1)]
    for name, label in SHORT_NAMES.items():
        means = [f"{100 * interval.mean:.1f}" for interval in _short(mean_marks(seeds, name))]
        updates = _policy_cells(seeds, name)[-2]
        lines.append(f"| {label}{_some(seeds, name)} | {' | '.join([*means, updates])} |")
    for (name, against), label in SHORT_CONTRASTS.items():
        gains = [interval.cell(100) for interval in _short(differences(seeds, name, against))]
        lines.append(f"| {label}{_some(seeds, name, against)} | {' | '.join(gains)} | |")
    return "\n".join(lines) + "\n"


def options_markdown(seeds: Seeds) -> str:
    """Return the table of the options of alignment, those that cost most first."""
    names = [column.removeprefix("sum, ") for column in OPTION_COLUMNS]
    lines = [f"| option | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    columns = list(COLUMNS)
    trained = {name for seed in seeds.values() for name in seed["policies"]}
    gains = {}
    for name in OPTIONS:
        if name not in trained:
            continue
        found = dict(zip(columns, differences(seeds, name, ALIGNED), strict=True))
        gains[name] = [found[column] for column in OPTION_COLUMNS]
    for name, cells in sorted(gains.items(), key=lambda item: item[1][0].mean):
        numbers = " | ".join(interval.cell(100) for interval in cells)
        lines.append(f"| {OPTIONS[name]}{_some(seeds, name)} | {numbers} |")
    return "\n".join(lines) + "\n"


def _some(seeds: Seeds, *names: str) -> str:
    """Return a note if only some seeds have these policies."""
    known = [number for number, seed in seeds.items() if set(names) <= set(seed["policies"])]
    if len(known) == len(seeds):
        return ""
    return f" (seed {known[0]})" if len(known) == 1 else f" ({len(known)} seeds)"


def _short(intervals: Sequence[Interval]) -> list[Interval]:
    by_column = dict(zip(COLUMNS, intervals, strict=True))
    return [by_column[column] for column in SHORT_COLUMNS.values()]


def _policy_cells(seeds: Seeds, name: str) -> list[str]:
    policies = [seed["policies"][name] for seed in seeds.values() if name in seed["policies"]]
    marks = [interval.cell(100) for interval in mean_marks(seeds, name)]
    updates = fmean(policy["updates"] for policy in policies)
    seconds = fmean(policy["seconds"] for policy in policies)
    return [*marks, f"{updates:.0f}", f"{seconds / 60:.1f}"]


def _difference_table(seeds: Seeds, title: str, contrasts: Sequence[tuple[str, str]]) -> list[str]:
    lines = [f"| {title} | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
    for name, against in contrasts:
        cells = [interval.cell(100) for interval in differences(seeds, name, against)]
        some = _some(seeds, name, against)
        lines.append(f"| {name} minus {against}{some} | {' | '.join(cells)} |")
    return lines


def measures_markdown(seeds: Seeds) -> str:
    """Return the table of the independent measures, from the seeds that have them."""
    lines = [f"| policy | {' | '.join(MEASURES)} |", "|---|" + "---:|" * len(MEASURES)]
    for name in MAIN:
        known = [
            seed["policies"][name]["measures"]
            for seed in seeds.values()
            if "measures" in seed["policies"].get(name, {})
        ]
        if known:
            means = [Interval.of([found[title] for found in known]) for title in MEASURES]
            cells = " | ".join(mean.cell(100) for mean in means)
            count = "1 seed" if len(known) == 1 else f"{len(known)} seeds"
            lines.append(f"| {name} ({count}) | {cells} |")
    return "\n".join(lines) + "\n"


def draw(seeds: Seeds, path: Path) -> None:
    """Draw right sums over updates and over time, and right sums against right parities."""
    figure = Figure(figsize=(12, 4.6), dpi=150, layout="constrained")
    over_updates, over_time, ends = figure.subplots(1, 3)
    _draw_curves(over_updates, seeds, "updates", 1)
    _draw_curves(over_time, seeds, "seconds", 1 / 60)
    over_updates.set_xlabel("policy updates after SFT")
    over_time.set_xlabel("minutes after SFT")
    over_updates.set_ylabel("right sums, greedy (%)")
    over_updates.set_title("RL asks: even or odd? Test: what is the sum?", fontsize=10, loc="left")
    ends.set_title("What RL asks, and what it does not ask", fontsize=10, loc="left")
    _draw_ends(ends, seeds)
    figure.legend(*over_updates.get_legend_handles_labels(), loc="outside lower left", ncols=2)
    figure.legend(*ends.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    figure.savefig(path)


def _draw_curves(axes: Axes, seeds: Seeds, key: str, scale: float) -> None:
    """Draw greedy accuracy on sums, a line per seed. `key`: what is on the x axis."""
    labels: set[str] = set()
    for name, (label, color) in CURVES.items():
        for seed in seeds.values():
            continued = name == GRPO_UPDATES and GRPO_TIME in seed["curves"]
            if name not in seed["curves"] or continued:
                continue
            points = [_start(seed), *seed["curves"][name]]
            axes.plot(
                [scale * point[key] for point in points],
                [100 * point["accuracy"] for point in points],
                color=color,
                alpha=0.7,
                marker=".",
                label=None if label in labels else label,
            )
            labels.add(label)
    axes.grid(alpha=0.3)


def _draw_ends(axes: Axes, seeds: Seeds) -> None:
    """Draw a point per policy and seed, at temperature 1."""
    for name, (label, color, marker) in ENDS.items():
        policies = [seed["policies"][name] for seed in seeds.values() if name in seed["policies"]]
        axes.scatter(
            [100 * mark(policy, "parity") for policy in policies],
            [100 * mark(policy, "sum") for policy in policies],
            color=color,
            marker=marker,
            alpha=0.7,
            label=label,
        )
    axes.set_xlabel("right parities, which RL asks (%)")
    axes.set_ylabel("right sums, which RL does not ask (%)")
    axes.grid(alpha=0.3)


def _start(seed: Mapping[str, Any]) -> dict[str, float]:
    """Return the point of the SFT policy."""
    accuracy = mark(seed["policies"][SFT], "sum, greedy")
    return {"updates": 0, "seconds": 0.0, "accuracy": accuracy}


def write_report(folder: Path) -> str:
    """Write study.md and study.png from the seeds in `folder`, and return the text of study.md."""
    seeds = read_seeds(folder)
    text = markdown(seeds)
    (folder / "study.md").write_text(text, encoding="utf-8")
    draw(seeds, folder / "study.png")
    return text
