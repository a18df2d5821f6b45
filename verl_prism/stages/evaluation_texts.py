"""The texts that stage `eval` compares, read from disk when they are used."""

from collections.abc import Sequence
from pathlib import Path

from verl_prism.config import Prism
from verl_prism.data.rows import Rows, heldout_rows
from verl_prism.rollout.journal import JournalReader

COLUMN = "teacher_response"


class SampledTexts(Sequence[list[str]]):
    """The texts of a policy's sampled responses to each question, without the greedy one."""

    def __init__(self, journal: Path) -> None:
        self._responses = JournalReader(journal)

    def __len__(self) -> int:
        return len(self._responses)

    def __getitem__(self, question: int) -> list[str]:  # type: ignore[override]
        _, *sampled = self._responses[question]
        return [sample["text"] for sample in sampled]


class TeacherTexts(Sequence[str | None]):
    """The teacher's response to each question; None for a row without one."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, question: int) -> str | None:  # type: ignore[override]
        return self._rows[question][COLUMN]


def teacher_texts(prism: Prism, questions: int) -> TeacherTexts | None:
    """Return the teacher's texts for the first rows of the held-out data; None without any."""
    texts = TeacherTexts(heldout_rows(prism, (COLUMN,))[:questions])
    return texts if any(text is not None for text in texts) else None
