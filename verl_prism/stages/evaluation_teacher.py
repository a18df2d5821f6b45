"""Stage `eval`: the policies' texts against the teacher's, read from disk when they are used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_prism.config import Prism
from verl_prism.data.rows import heldout_rows
from verl_prism.measures.teacher import TeacherComparison
from verl_prism.report.metrics import MetricsLog
from verl_prism.rollout.journal import JournalReader
from verl_prism.run_folder import RunFolder

COLUMN = "teacher_response"


def compare_with_teacher(
    prism: Prism, questions: int, policies: Mapping[str, dict[str, Any]], log: MetricsLog
) -> dict[str, Any] | None:
    """Add `teacher` to each policy's results; return the teacher's own section of results.json.

    None, and nothing is added, if no question has a teacher's response.
    """
    teacher = teacher_texts(prism, questions)
    if teacher is None:
        return None
    comparison = TeacherComparison(teacher, prism.eval.bootstrap, prism.seed)
    folder = RunFolder(prism.output)
    for name, results in policies.items():
        log.note(f"{name}: comparing with the teacher")
        results["teacher"] = comparison.policy(SampledTexts(folder.samples(name)))
    return comparison.baseline()


class SampledTexts(Sequence[list[str]]):
    """The texts of a policy's sampled responses to each question, without the greedy one."""

    def __init__(self, journal: Path) -> None:
        self._responses = JournalReader(journal)

    def __len__(self) -> int:
        return len(self._responses)

    def __getitem__(self, question: int) -> list[str]:  # type: ignore[override]
        _, *sampled = self._responses[question]
        return [sample["text"] for sample in sampled]


def teacher_texts(prism: Prism, questions: int) -> Sequence[str | None] | None:
    """Return the teacher's texts for the first rows of the held-out data; None without any."""
    texts = heldout_rows(prism, (COLUMN,))[:questions].column(COLUMN)
    return texts if any(text is not None for text in texts) else None
