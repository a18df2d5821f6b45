"""HallusionBench: 951 yes-no questions with an image (arXiv 2310.14566).

The 178 questions without an image are published as a split of their own and are not part of the
paper's task `hallusion_bench_image`.
"""

from collections.abc import Sequence

from columns import IMAGE, LABEL, TEXT
from measures import Answer, Measures, accuracy, accuracy_by, all_right_share
from question import BadValue, Question, Row, gold_answer, image_bytes, required_text

NUMBERS = ("visual_input", "set_id", "figure_id", "question_id")
COLUMNS = {
    "category": TEXT,
    "subcategory": TEXT,
    "question": TEXT,
    "gt_answer": TEXT,
    "image": IMAGE,
    **dict.fromkeys(NUMBERS, LABEL),
}
FACTS = dict.fromkeys(("category", "subcategory", *NUMBERS), TEXT)
GOLD = {
    "1": ("Yes", ("True", "Correct", "Right")),
    "0": ("No", ("False", "Incorrect", "Wrong")),
}
PAIR = ("category", "subcategory", "set_id", "question_id")
FIGURE = ("category", "subcategory", "set_id", "figure_id")


def read(row: Row) -> Question:
    """Return the question of a published row. The text is the question alone, as in lmms-eval."""
    answer = gold_answer(row, "gt_answer")
    if answer not in GOLD:
        raise BadValue("gt_answer", f"is {answer!r}, but should be '1' (yes) or '0' (no)")
    gold, equivalents = GOLD[answer]
    facts = {name: str(row[name]) for name in FACTS}
    names = [facts[name] for name in (*FIGURE, "question_id")]
    return Question(
        name="-".join(names),
        text="<image>\n" + required_text(row, "question"),
        images=(image_bytes(row, "image"),),
        gold=gold,
        equivalents=equivalents,
        facts=facts,
    )


def measure(answers: Sequence[Answer]) -> Measures:
    """Return aAcc, qAcc and fAcc, and the accuracy by category and subcategory.

    aAcc: all questions. qAcc: the same question about all figures of a set is answered right. fAcc:
    all questions about a figure are answered right. Questions without a figure do not count.
    HallusionBench `utils.py` and lmms-eval: `get_eval_all`, `get_eval_pair_all`, `get_eval_fig`.
    """
    shown = [answer for answer in answers if not _without_figure(answer)]
    return {
        "aAcc": accuracy(answers),
        "qAcc": all_right_share(answers, PAIR),
        "fAcc": all_right_share(shown, FIGURE),
        **accuracy_by(answers, "category"),
        **accuracy_by(answers, "subcategory"),
    }


def _without_figure(answer: Answer) -> bool:
    return answer.facts["category"] == "VS" and answer.facts["figure_id"] == "0"
