"""The command `distill`, step by step."""

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

from verl_prism.data.checks.columns import check_columns
from verl_prism.data.row_files import common_schema, count_rows
from verl_prism.data.rows import parquet_files
from verl_prism.errors import UserError
from verl_prism.prepare.distill.asking import Asking, undecided
from verl_prism.prepare.distill.batch import read_results, write_requests
from verl_prism.prepare.distill.journal import KILLED, Journal
from verl_prism.prepare.distill.limits import Meter
from verl_prism.prepare.distill.questions import (
    COLUMNS,
    Question,
    RequestMaker,
    read_questions,
)
from verl_prism.prepare.distill.settings import Settings
from verl_prism.prepare.distill.verdicts import Grader
from verl_prism.prepare.distill.writing import NO_ANSWER, NOT_ASKED, Outcomes, write_output
from verl_prism.prepare.outputs import check_output
from verl_prism.prepare.progress import progress
from verl_prism.prepare.report import Report


def distill(settings: Settings) -> Report:
    """Run `distill`; see `verl_prism.prepare.distill`."""
    began = time.monotonic()
    files = source_files(settings)
    maker = RequestMaker(settings)
    with Journal(settings.journal, maker.identity) as journal:
        grader = Grader(settings)
        if settings.batch == "write":
            questions = read_questions(files, settings.limit)
            return write_requests(settings, maker, journal, grader, questions)
        figures = read_results(settings, journal) if settings.batch == "read" else {}
        questions = read_questions(files, settings.limit, COLUMNS)
        total = number_of_rows(settings, files)
        out_of_budget = ask(settings, questions, total, maker, journal, grader)
        outcomes = Outcomes(settings, maker, journal, grader)
        written, rejects = write_output(
            settings,
            common_schema(files),
            read_questions(files, settings.limit, columns=None),
            outcomes,
        )
        return Report(
            counts={
                "rows read": written + rejects.total(),
                "rows written": written,
                "answers": journal.totals().answers,
            },
            rejects=rejects,
            figures=spending(settings, journal) | figures | {"seconds": time.monotonic() - began},
            outputs=(settings.output, settings.rejects, settings.journal),
            problems=_problems(settings, rejects, out_of_budget),
        )


def source_files(settings: Settings) -> list[Path]:
    """Return the source's files, after a check of their columns.

    Raises:
        UserError: a column is missing or of a wrong type, or the output is one of the files.
    """
    files = parquet_files("source", settings.source)
    for file in files:
        check_columns("source", file, ["prompt", "images"])
        if settings.grade:
            _check_gold_column(file)
    check_output("output", settings.output, settings.source, files)
    common_schema(files)
    return files


def ask(
    settings: Settings,
    questions: Iterable[Question],
    total: int,
    maker: RequestMaker,
    journal: Journal,
    grader: Grader,
) -> bool:
    """Ask and judge what is missing of `total` questions; return whether the budget ended it."""
    meter = Meter(settings, journal.totals())
    with progress("asking", total) as bar:
        asking = Asking(settings, maker, journal, grader, meter, bar)
        left = undecided(questions, maker, journal, grader, bar)
        asyncio.run(asking.run(left, ask=settings.batch is None))
    return asking.out_of_budget


def number_of_rows(settings: Settings, files: list[Path]) -> int:
    """Return the number of rows of the source that are used."""
    rows = count_rows(files)
    return rows if settings.limit is None else min(rows, settings.limit)


def spending(settings: Settings, journal: Journal) -> dict[str, float | str]:
    """Return tokens and costs of everything in the journal, for the report."""
    totals = journal.totals()
    figures: dict[str, float | str] = {
        "input tokens": totals.input_tokens,
        "output tokens": totals.output_tokens,
    }
    if settings.prices.input is not None:
        cost = settings.prices.cost(totals.input_tokens, totals.output_tokens)
        figures |= {"cost": cost, "currency": settings.prices.currency}
    if totals.uncounted:
        figures["answers without a count of tokens (estimated)"] = totals.uncounted
    for why, number in totals.lost.items():
        name = "when killed" if why == KILLED else f"({why})"
        figures[f"sent and unanswered {name}"] = number
    if totals.lost and settings.prices.input is not None:
        most = settings.prices.cost(totals.lost_input, totals.lost_output)
        figures["cost of these, at most"] = most
    return figures


def _check_gold_column(file: Path) -> None:
    try:
        check_columns("source", file, ["reward_model"])
    except UserError as error:
        raise UserError(
            f"{error}. Questions without gold answers can only be kept ungraded: grade=false"
        ) from None


def _problems(settings: Settings, rejects: dict[str, int], out_of_budget: bool) -> tuple[str, ...]:
    problems = []
    if out_of_budget:
        problems.append(
            f"budget={settings.budget:g} leaves no room for a further request; with a higher one, "
            "the same command continues"
        )
    if rejects.get(NO_ANSWER):
        problems.append(
            f"{rejects[NO_ANSWER]:,} questions got no answer after {settings.retries} retries; "
            "the same command asks them again"
        )
    if settings.batch == "read" and rejects.get(NOT_ASKED):
        problems.append(
            f"{rejects[NOT_ASKED]:,} questions need a further round: batch=write, then batch=read"
        )
    return tuple(problems)
