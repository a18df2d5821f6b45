"""The results of an evaluation as a table: one row per policy, one column per mark, `mean ± half of its interval`."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

FACTS = ("folder",)  # entries of a policy that are not intervals
TITLES = {"length": "mean length", "greedy_accuracy": "greedy accuracy"}


def results_table(results: Mapping[str, Any]) -> Table:
    """For a terminal. results: the content of results.json."""
    table = Table(
        title=caption(results),
        title_justify="left",
        title_style="",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("policy", no_wrap=True)
    for column in columns(results):
        table.add_column(
            TITLES.get(column, column).replace(" ", "\n"), justify="right", no_wrap=True
        )
    for name, policy in results["policies"].items():
        table.add_row(name, *(cell(column, policy[column]) for column in columns(results)))
    return table


def results_markdown(results: Mapping[str, Any]) -> str:
    """The file results.md."""
    names = columns(results)
    lines = [
        ["policy", *(TITLES.get(name, name) for name in names)],
        ["---", *("---:" for _ in names)],
    ]
    for name, policy in results["policies"].items():
        lines.append([name, *(cell(column, policy[column]) for column in names)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{caption(results)}\n\n{table}\n"


def caption(results: Mapping[str, Any]) -> str:
    return (
        f"{results['questions']} held-out questions, {results['samples']} sampled responses each "
        f"(temperature {results['temperature']:g}, top-p {results['top_p']:g}, seed {results['seed']}); rates in %, "
        "length in tokens, ± the 95 % interval over questions"
    )


def columns(results: Mapping[str, Any]) -> list[str]:
    policy = next(iter(results["policies"].values()))
    return [name for name in policy if name not in FACTS]


def cell(column: str, interval: Mapping[str, Any]) -> str:
    """Of an interval that is not symmetric the longer half is shown."""
    mean = interval["mean"]
    if mean is None:
        return "none"
    scale = 1 if column == "length" else 100
    half = max(mean - interval["low"], interval["high"] - mean)
    return f"{scale * mean:.1f} ±{scale * half:.1f}"
