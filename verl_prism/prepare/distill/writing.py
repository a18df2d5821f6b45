"""The pass over the source that writes the rows with their answers, and the rejects."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from verl_prism.data.row_files import row_writer, with_columns
from verl_prism.data.schema import COLUMNS
from verl_prism.prepare.distill.journal import Journal, Try
from verl_prism.prepare.distill.questions import Question, RequestMaker
from verl_prism.prepare.distill.settings import Settings
from verl_prism.prepare.distill.verdicts import KEPT, Grader, demonstration
from verl_prism.prepare.rejects import open_rejects

DUPLICATE = "id of an earlier row"
NO_ANSWER = "no answer"
NOT_ASKED = "not asked"
NOT_JUDGED = "no verdict of the judge"


class Outcomes:
    """Says of each question whether it is kept, from the journal only."""

    def __init__(
        self, settings: Settings, maker: RequestMaker, journal: Journal, grader: Grader
    ) -> None:
        self._tries = settings.tries
        self._maker = maker
        self._journal = journal
        self._grader = grader
        journal.begin_pass()

    def of(self, question: Question) -> str | dict[str, Any]:
        """Return the text that is kept, or what to say of a question that is left out."""
        fault = self._maker.fault(question.row)
        if fault is not None:
            return {"reason": fault.reason, "detail": fault.detail}
        if not self._journal.first_time(question.id):
            return {"reason": DUPLICATE}
        tries = self._journal.tries(question.id)
        used = [tries[number] for number in range(self._tries) if number in tries]
        verdicts = [self._grader.verdict(attempt, question.row) for attempt in used]
        if KEPT in verdicts:
            return used[verdicts.index(KEPT)].answer.text
        return self._rejected(question, used, verdicts)

    def _rejected(
        self, question: Question, used: list[Try], verdicts: list[str | None]
    ) -> dict[str, Any]:
        texts = []
        for attempt, verdict in zip(used, verdicts, strict=True):
            texts.append({"reason": verdict or NOT_JUDGED, "text": attempt.answer.text})
        failure = self._journal.failure(question.id)
        if failure is not None:
            return {"reason": NO_ANSWER, "detail": failure, "tries": texts}
        refused = used and used[-1].answer.refused
        if not refused and len(used) < self._tries:
            return {"reason": NOT_ASKED, "tries": texts}
        return {"reason": texts[-1]["reason"], "tries": texts}


def write_output(
    settings: Settings, source: pa.Schema, questions: Iterable[Question], outcomes: Outcomes
) -> tuple[int, Counter[str]]:
    """Write the rows that have an answer, and the rejects.

    Returns the number of rows written, and the number of rows left out by reason.
    """
    added = {name: COLUMNS[name] for name in ("teacher_response", "messages")}
    with (
        open_rejects(settings.output) as rejects,
        row_writer(settings.output, with_columns(source, added)) as writer,
    ):
        for question in questions:
            outcome = outcomes.of(question)
            if isinstance(outcome, str):
                messages = demonstration(question.row, outcome)
                answered = {"teacher_response": outcome.strip(), "messages": messages}
                writer.write(question.row | answered)
            else:
                place: dict[str, Any] = {"file": str(question.file), "row": question.number}
                rejects.add(question.id, **place, **outcome)
        written = writer.rows
    return written, rejects.counts
