r"""Grade one table of labelled answers by our rules, by math-verify alone and by the public implementation's rules.

    python benchmarks/grading.py
    python benchmarks/grading.py --table other.tsv --show ours

Verdicts right and answers per second of CPU time, our math processes' included, per class, the three sides one after
the other for each class. `--show` lists what a side misjudges. Exit code 1: ours is right less often than another side
in some class, or grades fewer than 2,000 answers a second in a class that math-verify is not called for.

Where math-verify alone judges otherwise, it is for one of these reasons:

- It takes what it can read out of a text and ignores the rest: "maybe 8" and "not 8" are 8, 5 lb is 5 kg, 1 1/2 is 1.
- What is not mathematics it does not read, or reads as a product: `red` is e d r, "The answer is B" is nothing.
- It takes 50 % for 0.5 and for 50, and rounds decimals to six places, so that 0.0000012 is 0.000001.
- It reads (1, 2) as an open interval, which it takes for the list 1, 2 as well.
- Unicode is not TeX: 5² is 5, √2 is nothing.
"""

import argparse
import csv
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import math_verify
import psutil
from public_rules import accuracy as public_rules
from rich.console import Console
from rich.table import Table

from verl_prism.rewards.grader import math_verify_pool
from verl_prism.rewards.grader.grading import grade

TABLE = Path(__file__).parents[1] / "tests" / "rewards" / "grader" / "answers.tsv"
LEAST = 2000  # answers a second
SECONDS = 0.3  # of CPU time, for each class and side

Row = dict[str, str]
Side = Callable[[str, str, tuple[str, ...]], bool]
TEX = re.compile(r"\\(?:frac|sqrt|boxed|text|pi)|\$|\^")


def math_verify_alone(answer: str, gold: str, equivalents: tuple[str, ...]) -> bool:
    """As its README says: the gold as TeX, the answer as it is."""
    for accepted in (gold, *equivalents):
        wanted = math_verify.parse(accepted if "$" in accepted else f"${accepted}$")
        if math_verify.verify(
            wanted,
            math_verify.parse(
                f"${answer}$" if TEX.search(answer) and "$" not in answer else answer
            ),
        ):
            return True
    return False


SIDES: dict[str, Side] = {
    "ours": grade,
    "math-verify": math_verify_alone,
    "public rules": public_rules,
}


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        lines = (line for line in file if not line.startswith("#"))
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [{key: value.replace("⏎", "\n") for key, value in row.items()} for row in rows]


def arguments(row: Row) -> tuple[str, str, tuple[str, ...]]:
    return row["answer"], row["gold"], tuple(filter(None, row["equivalents"].split("|")))


def misjudged(side: Side, rows: list[Row]) -> list[Row]:
    return [row for row in rows if bool(side(*arguments(row))) != (row["verdict"] == "right")]


def rate(side: Side, rows: list[Row]) -> float:
    """Answers a second, over whole passes through the rows."""
    calls = [arguments(row) for row in rows]
    start, count = cpu_seconds(), 0
    while (seconds := cpu_seconds() - start) < SECONDS:
        for call in calls:
            side(*call)
        count += len(calls)
    return count / seconds


def cpu_seconds() -> float:
    """Of this process and its children, whatever else the machine does meanwhile."""
    mine = os.times()
    children = [child.cpu_times() for child in psutil.Process().children()]
    return sum(mine[:4]) + sum(times.user + times.system for times in children)


class CountedCalls:
    """How often math-verify is called by our rules."""

    def __init__(self) -> None:
        self.count, self._verified = 0, math_verify_pool.verified
        math_verify_pool.verified = self

    def __call__(self, answer: str, gold: str) -> bool:
        self.count += 1
        return self._verified(answer, gold)


def measure(
    rows: list[Row],
) -> Iterator[tuple[str, int, int, dict[str, list[Row]], dict[str, float]]]:
    """Of each class: its name, its answers, our calls of math-verify, what each side misjudges, and its rate."""
    calls = CountedCalls()
    for kind in dict.fromkeys(row["class"] for row in rows):
        mine = [row for row in rows if row["class"] == kind]
        before = calls.count
        wrong = {"ours": misjudged(SIDES["ours"], mine)}
        asked = calls.count - before
        wrong |= {name: misjudged(side, mine) for name, side in SIDES.items() if name != "ours"}
        yield (
            kind,
            len(mine),
            asked,
            wrong,
            {name: rate(side, mine) for name, side in SIDES.items()},
        )


def main() -> int:
    """Print the table and say whether ours holds its bars."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--show", choices=SIDES, help="list what this side misjudges")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    math_verify_pool.start()
    table = Table(
        "class",
        "answers",
        "asks math-verify",
        *(f"{name}: right" for name in SIDES),
        *(f"{name}: /s" for name in SIDES),
    )
    faults, totals, console = [], dict.fromkeys(SIDES, 0), Console(width=150)
    for kind, answers, asked, wrong, rates in measure(read(options.table)):
        right = {name: answers - len(rows) for name, rows in wrong.items()}
        table.add_row(
            kind,
            str(answers),
            str(asked),
            *map(str, right.values()),
            *(f"{rates[name]:,.0f}" for name in SIDES),
        )
        totals = {name: totals[name] + right[name] for name in SIDES}
        if right["ours"] < max(right.values()):
            faults.append(
                f"{kind}: ours is right {right['ours']} times, another side {max(right.values())}"
            )
        if rates["ours"] < (rates["math-verify"] if asked else LEAST):
            faults.append(f"{kind}: {rates['ours']:,.0f} answers a second")
        for row in wrong[options.show] if options.show else ():
            console.print(
                f"{kind}: {row['answer']!r} for {row['gold']!r} should be {row['verdict']}",
                markup=False,
            )
    table.add_row("all", "", "", *map(str, totals.values()))
    console.print(table)
    for fault in faults:
        console.print(fault, markup=False)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
