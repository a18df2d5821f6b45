"""We-Math: 525 problems of several steps, each with its one-step problems (arXiv 2407.01284).

A problem of two or three steps is published with one question per step and one for the whole, all
with the same `ID`: 1,740 questions.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from columns import IMAGE, TEXT
from measures import Answer, Measure, Measures, accuracy, rate
from question import BadValue, Question, Row, gold_answer, image_bytes, required_text

COLUMNS = {
    "ID": TEXT,
    "key": TEXT,
    "knowledge concept": TEXT,
    "question": TEXT,
    "option": TEXT,
    "answer": TEXT,
    "image_path": IMAGE,
}
FACTS = dict.fromkeys(("problem", "key", "concept"), TEXT)
PARTS = {
    "2steps_multi": ("2steps_1", "2steps_2"),
    "3steps_multi": ("3steps_1", "3steps_2", "3steps_3"),
}
KEYS = [key for whole, parts in PARTS.items() for key in (*parts, whole)]
STEPS = {"one-step": None, "two-step": "2steps_multi", "three-step": "3steps_multi"}
MEANINGS = {
    "IK": "insufficient knowledge",
    "IG": "inadequate generalization",
    "CM": "complete mastery",
}


def read(row: Row) -> Question:
    """Return the question of a published row.

    The text is that of lmms-eval (`wemath_doc_to_text_cot`). The options are one published text,
    with separators that vary. They are not split, so the gold answer is a letter alone.
    """
    key = required_text(row, "key")
    if key not in KEYS:
        raise BadValue("key", f"is {key!r}, but should be one of {', '.join(KEYS)}")
    problem = required_text(row, "ID")
    text = f"{required_text(row, 'question')}\n{required_text(row, 'option')}".strip()
    return Question(
        name=f"{problem}-{key}",
        text=f"<image>\n{text}",
        images=(image_bytes(row, "image_path"),),
        gold=gold_answer(row),
        facts={"problem": problem, "key": key, "concept": row["knowledge concept"]},
    )


def measure(answers: Sequence[Answer]) -> Measures:
    """Return the accuracy by number of steps and the four-dimensional metrics.

    Score = CM + IG / 2, as shares of all complete problems. This equals the published
    (525 - IG / 2 - RM - IK) / 525 (`four_dimensional_metrics.py` of We-Math, and
    `update_main_results_df` of lmms-eval), because each problem is of one of the four kinds. RM is
    a share of the problems whose multi-step question is right, as published. A problem that lacks
    a question has no kind and is in `incomplete problems`.
    """
    measures = {"accuracy": accuracy(answers)}
    for steps, name in STEPS.items():
        measures[steps] = accuracy(each for each in answers if _steps(each) == name)
    problems: dict[str, dict[str, bool]] = defaultdict(dict)
    for answer in answers:
        problems[answer.facts["problem"]][answer.facts["key"]] = answer.correct
    complete = [marks for marks in problems.values() if _is_complete(marks)]
    for strict in (True, False):
        measures |= _four_dimensions(complete, strict)
    measures["incomplete problems"] = rate(not _is_complete(marks) for marks in problems.values())
    return measures


def diagnose(parts: Sequence[bool], whole: bool, strict: bool) -> str:
    """Return the kind of a problem: IK, IG, CM or RM.

    IK: a part and the whole are wrong. IG: the parts are right, the whole is wrong. If the whole is
    right, CM needs all parts right under the strict rule, and one under the loose rule. Otherwise
    it is RM, rote memorization.
    """
    if not whole:
        return "IG" if all(parts) else "IK"
    mastered = all(parts) if strict else any(parts)
    return "CM" if mastered else "RM"


def _steps(answer: Answer) -> str | None:
    key = answer.facts["key"]
    return key if key in PARTS else None


def _four_dimensions(problems: Sequence[Mapping[str, bool]], strict: bool) -> Measures:
    name = "strict" if strict else "loose"
    total = len(problems)
    if not total:
        return {f"{name} score": Measure(None, 0)}
    kinds = Counter(_kind(marks, strict) for marks in problems)
    measures = {f"{name} score": Measure((kinds["CM"] + kinds["IG"] / 2) / total, total)}
    for kind, meaning in MEANINGS.items():
        measures[f"{name} {kind} ({meaning})"] = Measure(kinds[kind] / total, total)
    solved = kinds["CM"] + kinds["RM"]
    memorized = kinds["RM"] / solved if solved else None
    measures[f"{name} RM (rote memorization)"] = Measure(memorized, solved)
    return measures


def _kind(marks: Mapping[str, bool], strict: bool) -> str:
    whole = _whole(marks)
    return diagnose([marks[part] for part in PARTS[whole]], marks[whole], strict)


def _is_complete(marks: Mapping[str, bool]) -> bool:
    whole = _whole(marks)
    return whole in marks and all(part in marks for part in PARTS[whole])


def _whole(marks: Mapping[str, bool]) -> str:
    """Return the key of the question for the whole problem, from any of its keys."""
    return next(iter(marks)).split("_")[0] + "_multi"
