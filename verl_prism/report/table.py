"""The results of an evaluation as a table: one row per policy, one column per metric."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

NOT_METRICS = ("folder", "pass_at_k", "teacher")  # entries of a policy that are not intervals
FEW_QUESTIONS = 30  # with fewer, the intervals are too wide to compare policies
TITLES = {
    "length": "mean length",
    "judged_accuracy": "judged accuracy",
    "greedy_accuracy": "greedy accuracy",
    "greedy_judged_accuracy": "greedy judged accuracy",
}


def results_table(results: Mapping[str, Any]) -> Table:
    """Return the table for a terminal. `results` is the content of results.json."""
    return terminal_table(caption(results), _lines(results))


def results_markdown(results: Mapping[str, Any]) -> str:
    """Return the content of results.md. `results` is the content of results.json."""
    return f"{caption(results)}\n\n{markdown_table(_lines(results))}\n"


def categories_markdown(results: Mapping[str, Any]) -> str:
    """Return the section of results.md with a line for each category of each policy.

    It is empty if all questions are of one category.
    """
    found = results["categories"]
    if found is None:
        return ""
    names = columns(results)
    lines = [["policy", found["field"], "questions", *(TITLES.get(name, name) for name in names)]]
    for policy, categories in found["policies"].items():
        for category, metrics in categories.items():
            cells = [cell(name, metrics[name]) for name in names]
            lines.append([policy, category, str(found["questions"][category]), *cells])
    return f"\n## By {found['field']}\n\n{markdown_table(lines)}\n"


def judge_markdown(results: Mapping[str, Any]) -> str:
    """Return the section of results.md about what the judge said; empty if the judge is off."""
    judge = results["judge"]
    if judge is None:
        return ""
    first = next(iter(judge["policies"].values()))
    lines = [["policy", *first]]
    for policy, counts in judge["policies"].items():
        lines.append([policy, *map(str, counts.values())])
    text = (
        f"{judge['model']} was asked about each answer in a valid format that the rules call "
        "wrong. These are the numbers of answers by what it said. `judged accuracy` counts "
        "those that it calls right too, so it is never below `accuracy`. An answer without a "
        "verdict counts as wrong."
    )
    return f"\n## What the judge said\n\n{text}\n\n{markdown_table(lines)}\n"


def terminal_table(title: str, lines: Sequence[Sequence[str]]) -> Table:
    """Return lines as a table for a terminal; the first line is the header, a word per row.

    Names of policies and metrics are the user's, and may look like Rich's markup.
    """
    table = Table(
        title=Text(title),
        title_justify="left",
        title_style="",
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    header, *others = lines
    table.add_column(Text(header[0]), no_wrap=True)
    for name in header[1:]:
        table.add_column(Text(name.replace(" ", "\n")), justify="right", no_wrap=True)
    for line in others:
        table.add_row(*map(Text, line))
    return table


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return lines as a Markdown table; the first line is the header."""
    header, *others = lines
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *others])


def _lines(results: Mapping[str, Any]) -> list[list[str]]:
    """Return the header and a line per policy."""
    names = columns(results)
    lines = [["policy", *(TITLES.get(name, name) for name in names)]]
    for policy, metrics in results["policies"].items():
        lines.append([policy, *(cell(name, metrics[name]) for name in names)])
    return lines


def caption(results: Mapping[str, Any]) -> str:
    """Return one line that tells how the results were measured."""
    questions = results["questions"]
    few = "; so few questions say little" if questions < FEW_QUESTIONS else ""
    return (
        f"{questions} held-out questions, "
        f"{results['samples']} sampled responses each (temperature {results['temperature']:g}, "
        f"top-p {results['top_p']:g}, seed {results['seed']}); rates in %, "
        f"length in tokens, ± the 95 % interval over questions{few}"
    )


def columns(results: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics, in the order of the first policy."""
    policy = next(iter(results["policies"].values()))
    return [name for name in policy if name not in NOT_METRICS]


def cell(column: str, interval: Mapping[str, Any]) -> str:
    """Return `mean ± half the interval`; the longer half if the interval is asymmetric."""
    mean = interval["mean"]
    if mean is None:
        return "none"
    half = max(mean - interval["low"], interval["high"] - mean)
    if column == "reward":
        return f"{mean:.3f} ±{half:.3f}"
    scale = 1 if column == "length" else 100
    return f"{scale * mean:.1f} ±{scale * half:.1f}"
