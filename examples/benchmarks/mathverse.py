"""MathVerse: 788 problems in five versions, as lmms-eval has them (arXiv 2403.14624).

The versions move information from the text into the image, from `Text Dominant` to `Vision Only`.
The sixth version, `Text Only`, has no image, is published as a file of its own, and is not part of
the overall accuracy.
"""

from collections.abc import Sequence

from columns import IMAGE_OR_TEXT, TEXT
from measures import Answer, Measures, accuracy, accuracy_by
from question import Question, Row, gold_answer, image_bytes, required_struct, required_text

METADATA = ("subject", "subfield")
COLUMNS = {
    "sample_index": TEXT,
    "problem_index": TEXT,
    "problem_version": TEXT,
    "image": IMAGE_OR_TEXT,
    "answer": TEXT,
    "question_type": TEXT,
    "query_wo": TEXT,
    **{f"metadata.{name}": TEXT for name in METADATA},
}
ASKED = ("problem_index", "problem_version", "question_type")
FACTS = dict.fromkeys((*ASKED, *METADATA), TEXT)
TEXT_ONLY = "Text Only"


def read(row: Row) -> Question:
    """Return the question of a published row.

    The text is the published column `query_wo`: a hint on the form of the answer, the question, and
    the choices. For multiple choice, the gold answer is a letter.
    """
    images: tuple[bytes, ...] = ()
    placeholder = ""
    if row["problem_version"] != TEXT_ONLY:
        images = (image_bytes(row, "image"),)
        placeholder = "<image>\n"
    metadata = required_struct(row, "metadata")
    facts = {name: row[name] for name in ASKED} | {name: metadata[name] for name in METADATA}
    return Question(
        name=required_text(row, "sample_index"),
        text=placeholder + required_text(row, "query_wo"),
        images=images,
        gold=gold_answer(row),
        facts=facts,
    )


def measure(answers: Sequence[Answer]) -> Measures:
    """Return the accuracy overall and by version, type of question, subject and subfield.

    lmms-eval: `MathVerseEvaluator.eval_results` groups by `problem_version` and `subfield`. The
    overall accuracy is over all rows with an image. It is also the mean of the five versions if
    each of them has the same number of rows.
    """
    with_image = [answer for answer in answers if answer.facts["problem_version"] != TEXT_ONLY]
    measures = {"accuracy": accuracy(with_image)}
    measures |= accuracy_by(answers, "problem_version")
    for name in ("question_type", *METADATA):
        measures |= accuracy_by(with_image, name)
    return measures
