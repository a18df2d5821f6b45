"""The pass over the source that asks the teacher, several questions at a time."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

from verl_prism.errors import UserError
from verl_prism.prepare.distill.journal import Journal, Try
from verl_prism.prepare.distill.limits import BudgetSpent, Meter
from verl_prism.prepare.distill.questions import Question, RequestMaker
from verl_prism.prepare.distill.replies import Answer
from verl_prism.prepare.distill.settings import Settings
from verl_prism.prepare.distill.teacher import NoAnswer, Teacher
from verl_prism.prepare.distill.verdicts import KEPT, Grader
from verl_prism.prepare.progress import Progress

MOST_FAILURES = 10  # questions in a row without an answer, after which the run ends
MOST_REFUSALS = 10  # refused requests in a row, after which the run ends
# While some read, encode or grade, others keep the endpoint busy.
WORKERS_PER_REQUEST = 2

Tries = dict[int, Try]


def undecided(
    questions: Iterable[Question],
    maker: RequestMaker,
    journal: Journal,
    grader: Grader,
    bar: Progress | None = None,
) -> Iterator[tuple[Question, str, Tries]]:
    """Yield the questions that still have to be asked or judged, with digest and answers.

    Rows that cannot be asked, and further rows with the same id, are left out.

    Raises:
        UserError: the journal has another question by the same id.
    """
    journal.begin_pass()
    for question in questions:
        if maker.fault(question.row) is None and journal.first_time(question.id):
            digest = maker.digest(question.row)
            if not journal.same_question(question.id, digest):
                raise UserError(
                    f"{question.place}: the journal has another question by the id {question.id}; "
                    "give each question an id of its own, or use another output"
                )
            tries = journal.tries(question.id)
            if not grader.decided(tries, question.row):
                yield question, digest, tries
                continue
        if bar is not None:
            bar.add()


class Asking:
    """Asks and judges until every question is decided.

    Attributes:
        out_of_budget: whether the budget ended the pass.
    """

    def __init__(
        self,
        settings: Settings,
        maker: RequestMaker,
        journal: Journal,
        grader: Grader,
        meter: Meter,
        bar: Progress,
    ) -> None:
        self._settings = settings
        self._maker = maker
        self._journal = journal
        self._grader = grader
        self._meter = meter
        self._bar = bar
        self._teacher: Teacher | None = None
        self._reading = asyncio.Lock()
        self._failures = 0
        self._not_kept: list[tuple[str, int]] = []  # the refusals that end the run
        self.out_of_budget = False

    async def run(self, questions: Iterator[tuple[Question, str, Tries]], ask: bool) -> None:
        """Go through the questions. ask: whether to ask the teacher what is missing.

        Raises:
            UserError: the teacher or the judge is down or refuses every request.
        """
        self._grader.start()
        if ask:
            self._teacher = Teacher(self._settings, self._journal, self._meter)
        workers = [
            asyncio.create_task(self._work(questions))
            for _ in range(WORKERS_PER_REQUEST * self._settings.concurrency)
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            if self._teacher is not None:
                await self._teacher.close()
            if self._not_kept:
                await self._journal.forget(self._not_kept)

    async def _work(self, questions: Iterator[tuple[Question, str, Tries]]) -> None:
        while not self.out_of_budget:
            async with self._reading:
                item: Any = await asyncio.to_thread(next, questions, None)
            if item is None:
                return
            question, digest, tries = item
            try:
                await self._decide(question, digest, tries)
            except NoAnswer as error:
                await self._no_answer(question, str(error))
            except BudgetSpent:
                self.out_of_budget = True
                return
            self._bar.note(self._costs())
            self._bar.add()

    async def _decide(self, question: Question, digest: str, tries: Tries) -> None:
        request = None
        for number in range(self._settings.tries):
            verdict = None
            if number in tries:
                answer = tries[number].answer
                verdict = self._grader.verdict(tries[number], question.row)
            elif self._teacher is None:
                return
            else:
                if request is None:
                    request = await asyncio.to_thread(self._maker.request, question.row)
                answer = await self._teacher.ask(question.id, digest, number, request)
                self._failures = 0
                self._check_refusals(answer, self._teacher.refusals)
            if answer.refused:
                return
            if verdict is None:
                verdict = await self._grader.judge(
                    self._journal, question.id, number, answer, question.row
                )
            if verdict == KEPT:
                return

    def _check_refusals(self, last: Answer, refusals: list[tuple[str, int]]) -> None:
        """Check that not too many requests in a row were refused."""
        if len(refusals) < MOST_REFUSALS:
            return
        self._not_kept = refusals
        raise UserError(
            f"the teacher at teacher.endpoint={self._settings.teacher.endpoint} refused "
            f"{len(refusals)} requests in a row, which are not kept; the last: {last.text}. "
            "Correct the settings, or leave these rows out with stop_if_refused=false"
        )

    async def _no_answer(self, question: Question, reason: str) -> None:
        await self._journal.failed(question.id, reason)
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            teacher = self._settings.teacher
            raise UserError(
                f"the teacher at teacher.endpoint={teacher.endpoint} is down: {self._failures} "
                f"questions in a row got no answer after {self._settings.retries} retries each; "
                f"the last: {reason}. Run the command again when it is up: the journal keeps "
                "what was answered"
            )

    def _costs(self) -> str:
        meter = self._meter
        text = f"{meter.input_tokens:,} + {meter.output_tokens:,} tokens"
        prices = self._settings.prices
        if prices.input is None:
            return text
        return f"{text}, {meter.cost:.2f} {prices.currency}"
