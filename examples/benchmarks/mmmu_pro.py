"""MMMU-Pro: 1,730 questions in two settings (arXiv 2409.02813).

`standard` has ten options in the text. In `vision`, question and options are only in the image.
"""

from collections.abc import Sequence

from columns import IMAGE, TEXT
from measures import Answer, Measure, Measures, accuracy, accuracy_by
from mmmu import DOMAIN_OF, IMAGES, listed_options, marks_replaced, mentioned_images
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

HINT = "Answer with the option letter from the given choices directly."
BOTH = {"id": TEXT, "options": TEXT, "answer": TEXT, "subject": TEXT}
STANDARD = {**BOTH, "question": TEXT, **dict.fromkeys(IMAGES, IMAGE)}
VISION = {**BOTH, "image": IMAGE}
SETTINGS = ("standard", "vision")
FACTS = dict.fromkeys(("setting", "subject", "domain"), TEXT)


def read(row: Row) -> Question:
    """Return the question of a published row of either setting.

    Standard: the text of lmms-eval, with the images where the marks `<image 2>` are, in the order
    of the marks, because the options are shuffled. Vision: the image and the hint alone.
    """
    options = listed_options(row)
    gold = gold_answer(row)
    notes: tuple[str, ...] = ()
    if "question" in row:
        setting = "standard"
        text = f"{required_text(row, 'question')}\n{lettered(options)}\n\n{HINT}"
        images, notes = mentioned_images(row, text)
        text = marks_replaced(text)
    else:
        setting = "vision"
        text = f"<image>\n{HINT}"
        images = (image_bytes(row, "image"),)
    return Question(
        name=f"{setting}-{required_text(row, 'id')}",
        text=text,
        images=images,
        gold=gold,
        equivalents=with_letter(gold, option_of(gold, options)),
        facts={
            "setting": setting,
            "subject": row["subject"],
            "domain": DOMAIN_OF.get(row["subject"]),
        },
        notes=notes,
    )


def measure(answers: Sequence[Answer]) -> Measures:
    """Return the accuracy of each setting, the mean of the two, and both by domain and subject.

    The mean is None if a setting is missing. lmms-eval runs the settings as two tasks and does not
    combine them.
    """
    of = {name: [each for each in answers if each.facts["setting"] == name] for name in SETTINGS}
    standard = accuracy(of["standard"])
    vision = accuracy(of["vision"])
    measures = {"mean of both": _mean(standard, vision), "standard": standard, "vision": vision}
    for setting, chosen in of.items():
        for name in ("domain", "subject"):
            for label, share in accuracy_by(chosen, name).items():
                measures[f"{setting}, {label}"] = share
    return measures


def _mean(standard: Measure, vision: Measure) -> Measure:
    count = standard.count + vision.count
    if standard.value is None or vision.value is None:
        return Measure(None, count)
    return Measure((standard.value + vision.value) / 2, count)
