"""MathVision, also called MATH-V: 304 questions of its split testmini (arXiv 2402.14804)."""

from collections.abc import Sequence

from columns import IMAGE, LABEL, TEXT, TEXTS
from measures import Answer, Measures, accuracy, accuracy_by
from question import (
    Question,
    Row,
    gold_answer,
    image_bytes,
    lettered,
    option_of,
    required_text,
    with_letter,
)

HINT = "Answer the question with the option's letter from the given choices directly."
COLUMNS = {
    "id": TEXT,
    "question": TEXT,
    "options": TEXTS,
    "decoded_image": IMAGE,
    "answer": TEXT,
    "level": LABEL,
    "subject": TEXT,
}
FACTS = {"question_type": TEXT, "subject": TEXT, "level": TEXT, "options": TEXTS}


def read(row: Row) -> Question:
    """Return the question of a published row.

    The text is that of lmms-eval without its first sentence, which asks for `\\boxed{}` and would
    contradict our response format. Marks such as `<image1>` in the question stay as they are: they
    refer to parts of the one image.
    """
    text = required_text(row, "question")
    gold = gold_answer(row)
    options = row["options"] or []
    equivalents: tuple[str, ...] = ()
    if options:
        text = f"{text}\nChoices: {lettered(options)}\n{HINT}"
        equivalents = with_letter(gold, option_of(gold, options))
    return Question(
        name=required_text(row, "id"),
        text=f"<image>\n{text}",
        images=(image_bytes(row, "decoded_image"),),
        gold=gold,
        equivalents=equivalents,
        facts={
            "question_type": "multiple choice" if options else "free form",
            "subject": row["subject"],
            "level": str(row["level"]),
            "options": options,
        },
    )


def measure(answers: Sequence[Answer]) -> Measures:
    """Return the accuracy overall (lmms-eval: `mathvision_aggregate_results_eval`) and by fact."""
    measures = {"accuracy": accuracy(answers)}
    for name in ("question_type", "subject", "level"):
        measures |= accuracy_by(answers, name)
    return measures
