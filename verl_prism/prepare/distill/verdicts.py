"""Whether an answer of the teacher is kept, and why not."""

import asyncio
import json
from collections.abc import Mapping

from verl_prism.data.checks.messages import GARBLED, check_messages
from verl_prism.data.checks.problem import RowError
from verl_prism.data.row_files import Row
from verl_prism.prepare.distill.journal import Journal, Try
from verl_prism.prepare.distill.questions import accepted
from verl_prism.prepare.distill.replies import Answer
from verl_prism.prepare.distill.settings import Settings
from verl_prism.response import parse_response
from verl_prism.rewards import grade
from verl_prism.rewards.grader import math_verify_pool
from verl_prism.rewards.judge import JudgeClient
from verl_prism.rewards.opinion import Opinion

KEPT = ""
WRONG = "wrong answer"
TRUNCATED = "truncated"
UNUSABLE = ("tool_calls", "function_call", "error", "teacher refuses")  # how an answer ends


class Grader:
    """Judges answers by the format, the rules of grading, and the judge if there is one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._judge: JudgeClient | None = None

    def start(self) -> None:
        """Prepare for answers; in the event loop that asks."""
        if self._settings.grade:
            math_verify_pool.start()
        if self._settings.judge.endpoint is not None:
            self._judge = JudgeClient(self._settings.judge, key="judge")

    def basis(self, row: Row) -> str:
        """Return what verdicts on the answers of a row depend on."""
        if not self._settings.grade:
            return "format"
        judge = self._settings.judge.model
        return json.dumps([judge, *accepted(row)], ensure_ascii=False)

    def verdict(self, attempt: Try, row: Row) -> str | None:
        """Return the verdict that the journal has of an answer, None if it has to be judged."""
        if attempt.answer.refused:
            return "refused by the endpoint"
        return attempt.verdict if attempt.graded_by == self.basis(row) else None

    def decided(self, tries: Mapping[int, Try], row: Row) -> bool:
        """Tell whether nothing is left to ask or to judge about a row."""
        for number in range(self._settings.tries):
            attempt = tries.get(number)
            if attempt is None:
                return False
            verdict = self.verdict(attempt, row)
            if verdict == KEPT or attempt.answer.refused:
                return True
            if verdict is None:
                return False
        return True

    async def judge(
        self, journal: Journal, question: str, number: int, answer: Answer, row: Row
    ) -> str:
        """Return the verdict of an answer, after it is in the journal.

        A verdict is not kept there if the judge gave none: it may give one in another run.
        """
        verdict, settled = await self._judged(answer, row)
        if settled:
            await journal.judged(question, number, verdict, self.basis(row))
        return verdict

    async def _judged(self, answer: Answer, row: Row) -> tuple[str, bool]:
        verdict = self._format_fault(answer, row)
        if verdict != KEPT or not self._settings.grade:
            return verdict, True
        given = parse_response(answer.text).answer
        gold, *equivalents = answers = accepted(row)
        if await asyncio.to_thread(grade, given, gold, equivalents):
            return KEPT, True
        if self._judge is None:
            return WRONG, True
        opinion = await self._judge.opinion(answers, given)
        if opinion is Opinion.RIGHT:
            return KEPT, True
        if opinion is Opinion.WRONG:
            return WRONG, True
        return unjudged(opinion), False

    def _format_fault(self, answer: Answer, row: Row) -> str:
        if answer.finish == "length":
            return TRUNCATED
        if answer.finish in UNUSABLE:
            return f"ends with {answer.finish}"
        if not answer.text.strip():
            return "empty answer"
        fault = parse_response(answer.text).fault
        if fault is not None:
            return f"format: {fault}"
        if GARBLED.search(answer.text):
            return "format: parts of characters"
        try:
            check_messages({**row, "messages": demonstration(row, answer.text)}, "messages")
        except RowError:
            return "format: a placeholder such as <image> in the answer"
        return KEPT


def unjudged(opinion: Opinion) -> str:
    """Return why an answer is rejected of which the judge gave no verdict."""
    return f"wrong by the rules, and no verdict of the judge: {opinion}"


def demonstration(row: Row, text: str) -> list[dict[str, str]]:
    """Return the prompt of a row with an answer as the last message."""
    return [*row["prompt"], {"role": "assistant", "content": text.strip()}]
