"""MathVista: 1,000 questions of its split testmini (arXiv 2310.02255)."""

from collections.abc import Sequence

from columns import IMAGE, TEXT, TEXTS
from measures import Answer, Measures, accuracy, accuracy_by
from question import (
    BadValue,
    Question,
    Row,
    gold_answer,
    image_bytes,
    required_struct,
    required_text,
    with_letter,
)

ASKED = ("question_type", "answer_type")
METADATA = ("task", "context", "grade", "category", "language", "source", "skills")
COLUMNS = {
    "pid": TEXT,
    "decoded_image": IMAGE,
    "choices": TEXTS,
    "answer": TEXT,
    "query": TEXT,
    **dict.fromkeys(ASKED, TEXT),
    **{f"metadata.{name}": TEXTS if name == "skills" else TEXT for name in METADATA},
}
FACTS = {
    **dict.fromkeys((*ASKED, *METADATA), TEXT),
    "skills": TEXTS,
    "options": TEXTS,
}


def read(row: Row) -> Question:
    """Return the question of a published row.

    The text is the published column `query`: a hint on the form of the answer (an option's letter,
    or how many decimals), the question with its unit, and the choices.
    """
    gold = gold_answer(row)
    equivalents: tuple[str, ...] = ()
    options = row["choices"] or []
    if row["question_type"] == "multi_choice":
        letter = _letter(gold, options)
        equivalents = with_letter(letter, gold)
        gold = letter
    metadata = required_struct(row, "metadata")
    facts = {name: row[name] for name in ASKED} | {name: metadata[name] for name in METADATA}
    return Question(
        name=required_text(row, "pid"),
        text="<image>\n" + required_text(row, "query"),
        images=(image_bytes(row, "decoded_image"),),
        gold=gold,
        equivalents=equivalents,
        facts={**facts, "options": options},
    )


def measure(answers: Sequence[Answer]) -> Measures:
    """Return the accuracy overall and by each fact that the published aggregation lists.

    lmms-eval: `mathvista_aggregate_results`. A question counts for each of its skills.
    """
    measures = {"accuracy": accuracy(answers)}
    for name in (*ASKED, *METADATA):
        measures |= accuracy_by(answers, name)
    return measures


def _letter(answer: str, options: Sequence[str]) -> str:
    """Return the letter of the option whose text is the gold answer."""
    texts = [option.strip() for option in options]
    if answer not in texts:
        raise BadValue("answer", f"is {answer!r}, which is none of the choices {texts}")
    return chr(ord("A") + texts.index(answer))
