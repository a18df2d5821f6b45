"""A picture of the lengths of rows in tokens, with the limits."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from verl_prism.files import atomic_file
from verl_prism.prepare.check.lengths import KINDS, Counts, Lengths

BINS = 60
COLOR = "#2f6f9f"
LIMIT_COLOR = "#b42318"


def draw_lengths(path: Path, lengths: Lengths, limits: Mapping[str, int]) -> None:
    """Write a picture with a row per split and a column per kind, if there are any lengths.

    limits: the limits in tokens by their key, which are drawn as lines.
    """
    found = lengths.counts
    kinds = [kind for kind in KINDS if any(kind in counts for counts in found.values())]
    size = (3.6 * len(kinds), 2.4 * len(found) + 0.3)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(len(found), len(kinds), squeeze=False)
    for line, (split, counts) in zip(grid, found.items(), strict=True):
        for axes, kind in zip(line, kinds, strict=True):
            title, key = KINDS[kind]
            limit = limits.get(key) if key else None
            _draw(axes, counts.get(kind, Counter()), key, limit)
            axes.set_title(f"{split}: {title}", fontsize=9, loc="left")
    with atomic_file(path) as unfinished:
        figure.savefig(unfinished, format="png")


def _draw(axes: Axes, counts: Counts, key: str | None, limit: int | None) -> None:
    if counts:
        tokens = np.array(sorted(counts))
        rows = np.array([counts[each] for each in sorted(counts)])
        end = max(tokens[-1], limit or 0) * 1.05 + 1
        axes.hist(tokens, bins=min(BINS, int(end)), range=(0, end), weights=rows, color=COLOR)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", fontsize=8)
    if limit is not None:
        axes.axvline(limit, color=LIMIT_COLOR, linewidth=1)
        axes.annotate(
            f"{key}={limit}",
            (limit, 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 0),
            textcoords="offset points",
            color=LIMIT_COLOR,
            fontsize=7,
            ha="right",
            va="top",
        )
    axes.set_xlabel("tokens", fontsize=8)
    axes.set_ylabel("rows", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
