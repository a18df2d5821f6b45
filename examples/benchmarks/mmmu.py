"""MMMU: 900 questions of its split validation (arXiv 2311.16502)."""

import ast
import re
from collections.abc import Sequence

from columns import IMAGE, TEXT
from measures import Answer, Measures, accuracy, accuracy_by
from question import (
    BadValue,
    Question,
    Row,
    gold_answer,
    image_bytes,
    lettered,
    option_of,
    required_text,
    with_letter,
)

CHOICE_HINT = "Answer with the option's letter from the given choices directly."
OPEN_HINT = "Answer the question using a single word or phrase."
IMAGES = tuple(f"image_{number}" for number in range(1, 8))
COLUMNS = {
    "id": TEXT,
    "question": TEXT,
    "options": TEXT,
    "answer": TEXT,
    "question_type": TEXT,
    **dict.fromkeys(IMAGES, IMAGE),
}
FACTS = dict.fromkeys(("question_type", "subject", "domain"), TEXT)
DOMAINS = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": (
        "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine "
        "Pharmacy Public_Health"
    ),
    "Humanities and Social Science": "History Literature Psychology Sociology",
    "Tech and Engineering": (
        "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power "
        "Materials Mechanical_Engineering"
    ),
}
DOMAIN_OF = {subject: name for name, subjects in DOMAINS.items() for subject in subjects.split()}
_MARK = re.compile(r"<image (\d+)>")
_NAME = re.compile(r"[^_]+_(.+)_\d+")


def read(row: Row) -> Question:
    """Return the question of a published row.

    The text is that of lmms-eval (`construct_prompt`). A mark `<image 2>` in the question or in an
    option becomes `<image>`, and the images are in the order of the marks.
    """
    name = required_text(row, "id")
    subject = _NAME.fullmatch(name)
    if subject is None:
        raise BadValue("id", f"is {name!r}, but should be like 'validation_Art_Theory_1'")
    gold = gold_answer(row)
    question = required_text(row, "question")
    equivalents: tuple[str, ...] = ()
    if row["question_type"] == "multiple-choice":
        options = listed_options(row)
        equivalents = with_letter(gold, option_of(gold, options))
        text = f"{question}\n{lettered(options)}\n\n{CHOICE_HINT}"
    else:
        gold, *others = _open_golds(gold)
        equivalents = tuple(others)
        text = f"{question}\n\n{OPEN_HINT}"
    images, notes = mentioned_images(row, text)
    return Question(
        name=name,
        text=marks_replaced(text),
        images=images,
        gold=gold,
        equivalents=equivalents,
        facts={
            "question_type": row["question_type"],
            "subject": subject[1],
            "domain": DOMAIN_OF.get(subject[1]),
        },
        notes=notes,
    )


def measure(answers: Sequence[Answer]) -> Measures:
    """Return the accuracy over all questions, by domain, subject and type of question.

    lmms-eval: `mmmu_aggregate_results`, which weights the subjects by their number of questions.
    Its parser picks a random option if it finds none in a response. Here such an answer is wrong.
    """
    measures = {"accuracy": accuracy(answers)}
    for name in ("question_type", "domain", "subject"):
        measures |= accuracy_by(answers, name)
    return measures


def listed_options(row: Row) -> list[str]:
    """Return the options, which are published as the text of a Python list.

    Raises:
        BadValue: they are not a list.
    """
    text = required_text(row, "options")
    try:
        options = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        options = None
    if not isinstance(options, list) or not options:
        raise BadValue("options", f"is {text!r}, but should be the text of a Python list")
    return [str(option) for option in options]


def mentioned_images(row: Row, text: str) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """Return the images that `text` mentions, in its order, and a note if one is not mentioned."""
    columns = [f"image_{number}" for number in _MARK.findall(text)]
    unknown = [column for column in columns if column not in IMAGES]
    if unknown:
        raise BadValue("question", f"mentions {unknown[0]}, but the last column is {IMAGES[-1]}")
    images = tuple(image_bytes(row, column) for column in columns)
    unused = [column for column in IMAGES if row[column] is not None and column not in columns]
    if unused:
        return images, ("an image that the text does not mention is not shown",)
    return images, ()


def marks_replaced(text: str) -> str:
    """Return the text with our placeholder in place of each mark such as `<image 2>`."""
    return _MARK.sub("<image>", text)


def _open_golds(gold: str) -> list[str]:
    """Return the gold answers of an open question: one, or the items of the text of a list."""
    if not gold.startswith("["):
        return [gold]
    try:
        golds = ast.literal_eval(gold)
    except (SyntaxError, ValueError):
        return [gold]
    return [str(each) for each in golds] or [gold]
