"""Print the measures of a benchmark for a run of stage eval.

    python examples/benchmarks/score.py wemath outputs/eval/wemath

Every response counts as stage eval graded it. `greedy` is the greedy response to each question.
`sampled` is the mean of the measure over the sampled responses: the first sample of every question,
the second of every question, and so on.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from measures import Answer, Measure, Measures
from sets import BENCHMARKS

from verl_prism.data.row_files import Row, read_rows
from verl_prism.data.rows import parquet_files, skipped_rows
from verl_prism.errors import UserError
from verl_prism.run_folder import RunFolder

GREEDY = None  # the number of the greedy sample in `responses.jsonl`
Draws = dict[int | None, list[Answer]]  # the answers to all questions, by the number of the sample


def read_draws(name: str, run: Path, heldout: Sequence[Path] | None) -> dict[str, Draws]:
    """Return the answers of each policy of a run of stage eval.

    heldout: the files that `convert.py` wrote; None: those that the run names.

    Raises:
        UserError: the run is not complete, or it is about other questions.
    """
    folder = RunFolder(run)
    for file in (folder.results, folder.responses):
        if not file.is_file():
            raise UserError(
                f"{file} does not exist; give the folder of a finished run of stage=eval"
            )
    results = json.loads(folder.results.read_text(encoding="utf-8"))
    rows = _questions(folder, heldout or [Path(results["heldout"])])[: results["questions"]]
    if len(rows) < results["questions"]:
        raise UserError(
            f"{run} has {results['questions']} questions, but the held-out file {len(rows)}; "
            "give the file of the run with --heldout"
        )
    draws: dict[str, Draws] = defaultdict(lambda: defaultdict(list))
    with open(folder.responses, encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            row = rows[record["question"]]
            _check(name, record, row)
            answer = Answer(row["extra_info"], record["marks"]["accuracy"])
            draws[record["policy"]][record["sample"]].append(answer)
    _check_complete(folder, draws, len(rows))
    return draws


def table(name: str, draws: Draws) -> str:
    """Return the measures of one policy as a Markdown table."""
    measure = BENCHMARKS[name].measure
    greedy = measure(draws[GREEDY])
    sampled = [measure(answers) for number, answers in draws.items() if number is not GREEDY]
    head = ["| measure | count | greedy | sampled |", "|---|---|---|---|"]
    return "\n".join([*head, *_table_rows(greedy, sampled)])


def _table_rows(greedy: Measures, sampled: Sequence[Measures]) -> Iterator[str]:
    for name, share in greedy.items():
        mean = _mean([measures[name] for measures in sampled])
        yield f"| {name} | {share.count} | {_percent(share.value)} | {_percent(mean)} |"


def _mean(shares: Sequence[Measure]) -> float | None:
    """Return the mean over the samples for which the measure is defined."""
    values = [share.value for share in shares if share.value is not None]
    return fmean(values) if values else None


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f}"


def _questions(folder: RunFolder, heldout: Sequence[Path]) -> list[Row]:
    """Return the rows that the run has read, without prompts and images."""
    columns = ("data_source", "reward_model", "extra_info")
    files = [file for path in heldout for file in parquet_files("--heldout", path)]
    skipped = set(skipped_rows(folder)["heldout"])
    rows = enumerate(read_rows(files, columns))
    return [row for number, row in rows if number not in skipped]


def _check(name: str, record: Mapping[str, Any], row: Row) -> None:
    place = f"question {record['question']}"
    if row["data_source"] != name:
        raise UserError(f"{place}: the held-out file is of {row['data_source']}, not of {name}")
    gold = row["reward_model"]["ground_truth"]
    if record["gold"] != gold:
        raise UserError(
            f"{place}: the run has the gold answer {record['gold']!r}, the held-out file {gold!r}; "
            "give the file of the run with --heldout"
        )


def _check_complete(folder: RunFolder, draws: Mapping[str, Draws], questions: int) -> None:
    for policy, samples in draws.items():
        for sample, answers in samples.items():
            if len(answers) != questions:
                raise UserError(
                    f"{folder.responses}: {policy} has {len(answers)} responses with sample "
                    f"{sample}, but there are {questions} questions; run stage=eval again"
                )


def main() -> None:
    """Print a table for each policy."""
    parser = argparse.ArgumentParser(description="Print the measures of a benchmark.")
    add = parser.add_argument
    add("name", choices=BENCHMARKS, help="which benchmark")
    add("run", type=Path, help="output folder of a run of stage=eval")
    add("--heldout", type=Path, nargs="+", help="what convert.py wrote, if it has moved")
    arguments = parser.parse_args()
    try:
        policies = read_draws(arguments.name, arguments.run, arguments.heldout)
    except UserError as error:
        raise SystemExit(str(error)) from None
    for policy, draws in policies.items():
        print(f"## {policy}: {arguments.name}, percent\n")
        print(table(arguments.name, draws), end="\n\n")


if __name__ == "__main__":
    main()
