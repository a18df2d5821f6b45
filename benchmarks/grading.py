r"""Compare our grader with math-verify alone and with the rules of the public implementation.

    python benchmarks/grading.py
    python benchmarks/grading.py --table other.tsv --show ours

Prints, per class of labeled answers, the number of right verdicts and the answers per second of
CPU time (including our math-verify processes). `--show` lists what a grader misjudges. The exit
code is 1 if ours is right less often than another grader in some class, or grades fewer than 2,000
answers a second in a class for which math-verify is not called.

Reasons why math-verify alone gives other verdicts:

- It takes what it can read from a text and ignores the rest: "maybe 8" and "not 8" are 8, 5 lb is
  5 kg, 1 1/2 is 1.
- It does not read what is not mathematics, or reads it as a product: `red` is e d r, "The answer
  is B" is nothing.
- It takes 50 % for 0.5 and for 50, and rounds decimals to six places: 0.0000012 is 0.000001.
- It reads (1, 2) as an open interval, which it also takes for the list 1, 2.
- It does not read Unicode: 5² is 5, √2 is nothing.
"""

import argparse
import csv
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import math_verify
import psutil
from public_rules import accuracy as public_rules
from rich.console import Console
from rich.table import Table

from verl_prism.rewards.grader import math_verify_pool
from verl_prism.rewards.grader.grading import grade

TABLE = Path(__file__).parents[1] / "tests" / "rewards" / "grader" / "answers.tsv"
MIN_RATE = 2000  # answers a second
SECONDS = 0.3  # of CPU time, for each class and grader

Row = dict[str, str]
Grader = Callable[[str, str, tuple[str, ...]], bool]
TEX = re.compile(r"\\(?:frac|sqrt|boxed|text|pi)|\$|\^")


def math_verify_alone(answer: str, gold: str, equivalents: tuple[str, ...]) -> bool:
    """Call math-verify as its README says: the gold answer as TeX, the answer as it is."""
    given = f"${answer}$" if TEX.search(answer) and "$" not in answer else answer
    for accepted in (gold, *equivalents):
        wanted = math_verify.parse(accepted if "$" in accepted else f"${accepted}$")
        if math_verify.verify(wanted, math_verify.parse(given)):
            return True
    return False


GRADERS: dict[str, Grader] = {
    "ours": grade,
    "math-verify": math_verify_alone,
    "public rules": public_rules,
}


@dataclass(frozen=True)
class Result:
    """The result of all graders on one class of answers."""

    kind: str
    answers: int
    calls: int  # of math-verify by our grader
    misjudged: dict[str, list[Row]]
    rates: dict[str, float]  # answers a second

    @property
    def right(self) -> dict[str, int]:
        """The number of right verdicts of each grader."""
        return {name: self.answers - len(rows) for name, rows in self.misjudged.items()}

    def failures(self) -> list[str]:
        """Return what our grader does worse than required."""
        failures = []
        best = max(self.right.values())
        if self.right["ours"] < best:
            failures.append(
                f"{self.kind}: ours is right {self.right['ours']} times, another grader {best}"
            )
        if self.rates["ours"] < (self.rates["math-verify"] if self.calls else MIN_RATE):
            failures.append(f"{self.kind}: {self.rates['ours']:,.0f} answers a second")
        return failures


def read(path: Path) -> list[Row]:
    """Read a table of labeled answers."""
    with path.open(encoding="utf-8") as file:
        lines = (line for line in file if not line.startswith("#"))
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [{key: value.replace("⏎", "\n") for key, value in row.items()} for row in rows]


def arguments(row: Row) -> tuple[str, str, tuple[str, ...]]:
    """Return the arguments of a grader."""
    equivalents = tuple(filter(None, row["equivalents"].split("|")))
    return row["answer"], row["gold"], equivalents


def misjudged(grader: Grader, rows: list[Row]) -> list[Row]:
    """Return the rows on which a grader disagrees with the label."""
    return [row for row in rows if bool(grader(*arguments(row))) != (row["verdict"] == "right")]


def rate(grader: Grader, rows: list[Row]) -> float:
    """Return the answers per second over complete passes through the rows."""
    calls = [arguments(row) for row in rows]
    start = cpu_seconds()
    seconds = 0.0
    count = 0
    while seconds < SECONDS:
        for call in calls:
            grader(*call)
        count += len(calls)
        seconds = cpu_seconds() - start
    return count / seconds


def cpu_seconds() -> float:
    """Return the CPU time of this process and its children, unaffected by other load."""
    seconds = sum(os.times()[:4])
    for child in psutil.Process().children():
        times = child.cpu_times()
        seconds += times.user + times.system
    return seconds


class CountedCalls:
    """Counts the calls of math-verify by our grader."""

    def __init__(self) -> None:
        self.count = 0
        self._verified = math_verify_pool.verified
        math_verify_pool.verified = self

    def __call__(self, answer: str, gold: str) -> bool:
        self.count += 1
        return self._verified(answer, gold)


def measure(kind: str, rows: list[Row], calls: CountedCalls) -> Result:
    """Run all graders on the answers of one class."""
    before = calls.count
    wrong = {"ours": misjudged(GRADERS["ours"], rows)}
    asked = calls.count - before
    for name, grader in GRADERS.items():
        if name != "ours":
            wrong[name] = misjudged(grader, rows)
    rates = {name: rate(grader, rows) for name, grader in GRADERS.items()}
    return Result(kind, len(rows), asked, wrong, rates)


def print_table(results: list[Result], console: Console) -> None:
    """Print one line per class, and the sum of the right verdicts."""
    table = Table("class", "answers", "asks math-verify")
    for name in GRADERS:
        table.add_column(f"{name}: right")
    for name in GRADERS:
        table.add_column(f"{name}: /s")
    for result in results:
        right = [str(result.right[name]) for name in GRADERS]
        rates = [f"{result.rates[name]:,.0f}" for name in GRADERS]
        table.add_row(result.kind, str(result.answers), str(result.calls), *right, *rates)
    totals = [sum(result.right[name] for result in results) for name in GRADERS]
    table.add_row("all", "", "", *map(str, totals))
    console.print(table)


def main() -> int:
    """Print the table, and return 1 if our grader does worse than required."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--show", choices=GRADERS, help="list what this grader misjudges")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    math_verify_pool.start()
    console = Console(width=150)
    rows = read(options.table)
    calls = CountedCalls()
    results = []
    for kind in dict.fromkeys(row["class"] for row in rows):
        of_kind = [row for row in rows if row["class"] == kind]
        results.append(measure(kind, of_kind, calls))
    if options.show:
        for result in results:
            for row in result.misjudged[options.show]:
                verdict = f"{row['answer']!r} for {row['gold']!r} should be {row['verdict']}"
                console.print(f"{result.kind}: {verdict}", markup=False)
    print_table(results, console)
    failures = [failure for result in results for failure in result.failures()]
    for failure in failures:
        console.print(failure, markup=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
