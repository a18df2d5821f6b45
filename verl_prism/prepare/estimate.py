"""Estimate the requests, tokens, time and costs of `distill` before it starts.

A sample of the rows, evenly spread over the source, is really asked, with the settings of
`distill`. The answers go into the journal of the output, so that `distill` does not ask, or pay,
for these rows again. The costs are those of the whole source, the sample included, with a 90 %
interval (Student's t). The time is the longest of the times that the rate limits and the
concurrency allow; an endpoint that slows down under load takes longer.

    python -m verl_prism.data estimate source=questions.parquet output=distilled.parquet \\
        teacher.endpoint=https://api.openai.com/v1 teacher.model=MODEL \\
        teacher.api_key_env=OPENAI_API_KEY requests_per_minute=500 \\
        prices.input=1.25 prices.output=10

    python -m verl_prism.data estimate config=distill.yaml sample=50
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, PositiveInt

from verl_prism.errors import UserError
from verl_prism.prepare.distill import settings as distill_settings
from verl_prism.prepare.distill.questions import COLUMNS, Question, RequestMaker
from verl_prism.prepare.report import Report

CONFIDENCE = 0.90


class Settings(distill_settings.Settings):
    """Settings of `estimate`: those of `distill`, and the size of the sample."""

    sample: PositiveInt = Field(20, description="number of rows that are asked")


@dataclass(frozen=True)
class Usage:
    """What a row of the sample took: its requests, their tokens, and the sum of their seconds."""

    requests: int
    input_tokens: int
    output_tokens: int
    seconds: float


def run(settings: Settings) -> Report:
    """Ask the sample, and estimate the whole.

    Raises:
        UserError: as `distill`.
    """
    from verl_prism.prepare.distill.journal import Journal  # the others import openai
    from verl_prism.prepare.distill.running import ask, number_of_rows, source_files
    from verl_prism.prepare.distill.verdicts import Grader
    from verl_prism.prepare.distill.writing import Outcomes

    files = source_files(settings)
    rows = number_of_rows(settings, files)
    chosen = spread(rows, settings.sample)
    maker = RequestMaker(settings)
    online = settings.model_copy(update={"batch": None})
    with Journal(settings.journal, maker.identity) as journal:
        grader = Grader(settings)
        out_of_budget = ask(online, _sample(files, chosen), len(chosen), maker, journal, grader)
        outcomes = Outcomes(settings, maker, journal, grader)
        usage = []
        failures = []
        kept = 0
        for question in _sample(files, chosen):
            kept += isinstance(outcomes.of(question), str)
            usage.append(Usage(*journal.usage(question.id)))
            failure = journal.failure(question.id)
            if failure is not None:
                failures.append(failure)
    if failures and len(failures) == len(usage):
        raise UserError(f"no row of the sample was answered: {failures[-1]}")
    problems = []
    if out_of_budget:
        problems.append("the budget ended before the sample; the figures are too low")
    if failures:
        problems.append(
            f"{len(failures)} rows of the sample were not answered ({failures[-1]}); "
            "the figures are too low"
        )
    return Report(
        counts={"rows": rows, "rows asked": len(usage), "rows kept of them": kept},
        figures=_figures(settings, rows, usage),
        outputs=(settings.journal,),
        problems=tuple(problems),
    )


def spread(rows: int, sample: int) -> list[int]:
    """Return at most `sample` row numbers, evenly spread."""
    if rows <= sample:
        return list(range(rows))
    return [int((index + 0.5) * rows / sample) for index in range(sample)]


def total_interval(values: Sequence[float], rows: int) -> tuple[float, float, float]:
    """Return a 90 % interval for a sum over `rows` rows from a sample: estimate, low, high.

    The rows of the sample are known, so that only the others are uncertain. The low bound is at
    least what the sample took.
    """
    from scipy.stats import t

    number = len(values)
    mean = sum(values) / number
    if number == rows:
        return mean * rows, mean * rows, mean * rows
    if number < 2:
        return mean * rows, mean, float("inf")
    variance = sum((value - mean) ** 2 for value in values) / (number - 1)
    error = rows * (variance / number * (1 - number / rows)) ** 0.5
    half = float(t.ppf((1 + CONFIDENCE) / 2, number - 1)) * error
    return mean * rows, max(sum(values), mean * rows - half), mean * rows + half


def _figures(settings: Settings, rows: int, usage: list[Usage]) -> dict[str, float | str]:
    scale = rows / len(usage)
    requests = scale * sum(row.requests for row in usage)
    inputs = scale * sum(row.input_tokens for row in usage)
    outputs = scale * sum(row.output_tokens for row in usage)
    seconds = scale * sum(row.seconds for row in usage) / settings.concurrency
    times = {f"concurrency={settings.concurrency}": seconds}
    if settings.requests_per_minute:
        times["requests_per_minute"] = 60 * requests / settings.requests_per_minute
    if settings.tokens_per_minute:
        times["tokens_per_minute"] = 60 * (inputs + outputs) / settings.tokens_per_minute
    limit = max(times, key=lambda name: times[name])
    figures: dict[str, float | str] = {
        "requests": requests,
        "input tokens": inputs,
        "output tokens": outputs,
        "seconds": times[limit],
        "limited by": limit,
    }
    if settings.prices.input is not None:
        costs = [settings.prices.cost(row.input_tokens, row.output_tokens) for row in usage]
        cost, low, high = total_interval(costs, rows)
        currency = settings.prices.currency
        figures |= {"cost": cost, "currency": currency}
        figures["cost, 90 % interval"] = f"{low:.3g} to {high:.3g} {currency}"
        figures["paid for the sample"] = sum(costs)
    return figures


def _sample(files: list[Path], chosen: list[int]) -> Iterator[Question]:
    """Yield the rows with these numbers, counted over all files; other row groups are not read."""
    import pyarrow.parquet as pq

    from verl_prism.data.batches import to_rows
    from verl_prism.data.row_files import row_id

    wanted = set(chosen)
    before = 0  # rows of the files and row groups before
    for file in files:
        start = before
        with pq.ParquetFile(file) as source:
            columns = [name for name in source.schema_arrow.names if name in COLUMNS]
            for group in range(source.metadata.num_row_groups):
                size = source.metadata.row_group(group).num_rows
                if wanted.isdisjoint(range(before, before + size)):
                    before += size
                    continue
                for batch in source.iter_batches(16, row_groups=[group], columns=columns):
                    for offset in range(batch.num_rows):
                        if before + offset in wanted:
                            number = before + offset - start
                            (row,) = to_rows(file, number, batch.slice(offset, 1))
                            yield Question(file, number, str(row_id(row)), row)
                    before += batch.num_rows
