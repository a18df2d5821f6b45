"""Keep the questions that the policy solves sometimes: its pass rate is between two bounds.

python -m verl_prism.data filter source=sampled.parquet output=rl.parquet
python -m verl_prism.data filter source=sampled.parquet output=rl.parquet min=0.1 max=0.9

A question that is always or never solved gives RL no gradient. The pass rate is the share of the
responses in student_responses that are in the response format and have the right answer, by the
grader of stage rlvr or by your own reward function. The defaults are the paper's: between 0.2 and
0.8 of 16 responses, both included. The output has a column pass_rate.
"""

from collections import Counter
from typing import Any

import pyarrow as pa
from pydantic import Field, PositiveInt, model_validator

from verl_prism.config import Fraction, Section, UserFunction
from verl_prism.data.checks.answers import check_reward_model
from verl_prism.data.checks.columns import check_columns
from verl_prism.data.checks.messages import check_student_responses
from verl_prism.data.checks.problem import RowError
from verl_prism.data.row_files import (
    Row,
    common_schema,
    count_rows,
    read_rows,
    row_id,
    row_writer,
    with_columns,
)
from verl_prism.data.rows import parquet_files
from verl_prism.errors import UserError
from verl_prism.prepare.outputs import check_output
from verl_prism.prepare.progress import progress
from verl_prism.prepare.rejects import open_rejects
from verl_prism.prepare.report import Report
from verl_prism.prepare.settings import Output, ParquetFiles
from verl_prism.response import parse_response
from verl_prism.rewards.own import own_score
from verl_prism.rewards.score import score_response

ROUNDING = 1e-9  # 0.2 of 15 responses are 3
BINS = 10
NEEDED = ("student_responses", "reward_model")


class Settings(Section):
    """Settings of `filter`."""

    source: ParquetFiles
    output: Output = Field(description="parquet file to write")
    min: Fraction = Field(0.2, description="lowest pass rate that is kept")
    max: Fraction = Field(0.8, description="highest pass rate that is kept")
    reward: UserFunction | None = Field(
        None, description="path/to/file.py:function that grades instead of the built-in grader"
    )
    limit: PositiveInt | None = Field(None, description="stop after this many kept rows")

    @model_validator(mode="after")
    def _in_order(self) -> "Settings":
        if self.min > self.max:
            raise ValueError(f"min={self.min} is above max={self.max}")
        return self


def run(settings: Settings) -> Report:
    """Write the rows whose pass rate is between the bounds.

    Raises:
        UserError: a row has no responses or no gold answer, or a file cannot be read or written.
    """
    files = parquet_files("source", settings.source)
    check_output("output", settings.output, settings.source, files)
    needed = NEEDED if settings.reward is None else (*NEEDED, "data_source")
    for file in files:
        check_columns("source", file, needed)
    schema = common_schema(files)
    rates: Counter[int] = Counter()
    total = count_rows(files)
    with (
        row_writer(settings.output, with_columns(schema, {"pass_rate": pa.float64()})) as writer,
        open_rejects(settings.output) as rejects,
        progress("grading", total) as bar,
    ):
        for row in read_rows(files):
            rate = pass_rate(row, settings.reward)
            rates[min(int(rate * BINS), BINS - 1)] += 1
            reason = _reason(rate, settings)
            if reason is None:
                writer.write(row | {"pass_rate": rate})
            else:
                rejects.add(row_id(row), reason, pass_rate=rate)
            bar.add()
            if writer.rows == settings.limit:
                break
    return Report(
        counts={"rows read": rates.total(), "rows kept": writer.rows},
        rejects=rejects.counts,
        figures={"questions by pass rate": _histogram(rates)},
        outputs=(settings.output, rejects.file),
    )


def pass_rate(row: Row, reward: str | None = None) -> float:
    """Return the share of a row's `student_responses` that are right.

    reward: as in `prism.reward.function`; a response counts as much as its `acc`.

    Raises:
        UserError: the row has no response or no gold answer, or the reward is not from 0 to 1.
    """
    responses = row["student_responses"]
    try:
        check_student_responses(row)
        if reward is None:
            check_reward_model(row, needs_gold=True)
    except RowError as error:
        raise UserError(f"row {row_id(row)}: {error}") from None
    gold = (row["reward_model"] or {}).get("ground_truth")
    return sum(_accuracy(text, row, gold, reward) for text in responses) / len(responses)


def _accuracy(text: str, row: Row, gold: Any, reward: str | None) -> float:
    response = parse_response(text)
    extra_info = row.get("extra_info")
    if reward is None:
        return float(score_response(response, gold, extra_info)["acc"])
    source = row["data_source"]
    try:
        accuracy = own_score(reward, source, response, gold, extra_info, key="reward")["acc"]
    except UserError as error:
        raise UserError(f"row {row_id(row)}: {error}") from None
    if not isinstance(accuracy, float) or not 0 <= accuracy <= 1:
        raise UserError(
            f"row {row_id(row)}: reward={reward} returned {accuracy!r} for a response; a pass rate "
            "needs a number from 0 to 1: return a dictionary with it as its entry 'acc'"
        )
    return accuracy


def _reason(rate: float, settings: Settings) -> str | None:
    if rate < settings.min - ROUNDING:
        return f"pass rate below {settings.min}"
    if rate > settings.max + ROUNDING:
        return f"pass rate above {settings.max}"
    return None


def _histogram(rates: Counter[int]) -> str:
    """Return "0.0-0.1: 12, 0.1-0.2: 3, ..."; the last bin includes 1."""
    parts = [
        f"{index / BINS:.1f}-{(index + 1) / BINS:.1f}: {rates[index]}" for index in range(BINS)
    ]
    return ", ".join(parts)
