"""The measures of the benchmarks against values by hand and against slow, obvious oracles."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "benchmarks"))

import hallusion
import mathverse
import mathvision
import mathvista
import mmmu
import mmmu_pro
import wemath
from measures import Answer, Measure


def problem(name: str, parts: str, whole: bool) -> list[Answer]:
    """Return the answers to a We-Math problem. parts: 1 for a right one-step answer, else 0."""
    steps = f"{len(parts)}steps"
    marks = {f"{steps}_{number}": part == "1" for number, part in enumerate(parts, 1)}
    marks[f"{steps}_multi"] = whole
    return [Answer({"problem": name, "key": key}, mark) for key, mark in marks.items()]


def test_wemath_by_hand():
    """Five problems, one of each kind but CM, which is there twice under the loose rule.

    The published sums for them: IK 1, IG 1; strict CM 1, RM 2; loose CM 2, RM 1. The published
    score is (total - IG / 2 - RM - IK) / total, the published RM rate is RM / (CM + RM).
    """
    answers = [
        *problem("knows a part", "10", False),  # IK
        *problem("cannot combine", "111", False),  # IG
        *problem("masters", "11", True),  # CM
        *problem("half", "011", True),  # CM if loose, RM if strict
        *problem("rote", "00", True),  # RM
    ]
    measures = wemath.measure(answers)
    assert measures["strict score"] == Measure((5 - 0.5 - 2 - 1) / 5, 5)
    assert measures["loose score"] == Measure((5 - 0.5 - 1 - 1) / 5, 5)
    assert measures["strict IK (insufficient knowledge)"].value == 1 / 5
    assert measures["strict IG (inadequate generalization)"].value == 1 / 5
    assert measures["strict CM (complete mastery)"].value == 1 / 5
    assert measures["loose CM (complete mastery)"].value == 2 / 5
    assert measures["strict RM (rote memorization)"] == Measure(2 / 3, 3)
    assert measures["loose RM (rote memorization)"] == Measure(1 / 3, 3)
    assert measures["one-step"] == Measure(8 / 12, 12)
    assert measures["two-step"] == Measure(2 / 3, 3)
    assert measures["three-step"] == Measure(1 / 2, 2)
    assert measures["accuracy"] == Measure(11 / 17, 17)
    assert measures["incomplete problems"] == Measure(0.0, 5)


def test_wemath_against_the_published_filters():
    """The oracle filters problems as the published tables do, one condition after the other."""
    rng = random.Random(0)
    outcomes = []
    answers = []
    for number in range(525):
        parts = "".join(rng.choice("0111") for _ in range(rng.choice((2, 3))))
        whole = rng.random() < 0.6
        outcomes.append((parts, whole))
        answers += problem(str(number), parts, whole)
    rng.shuffle(answers)
    measures = wemath.measure(answers)
    insufficient = sum("0" in parts and not whole for parts, whole in outcomes)
    inadequate = sum("0" not in parts and not whole for parts, whole in outcomes)
    memorized = {
        "strict": sum("0" in parts and whole for parts, whole in outcomes),
        "loose": sum("1" not in parts and whole for parts, whole in outcomes),
    }
    for rule, count in memorized.items():
        score = (525 - 0.5 * inadequate - count - insufficient) / 525
        assert measures[f"{rule} score"].value == pytest.approx(score, abs=1e-12)


def test_wemath_counts_incomplete_problems():
    whole = problem("b", "11", True)
    measures = wemath.measure([*problem("a", "11", True), *whole[1:]])
    assert measures["strict score"] == Measure(1.0, 1)
    assert measures["incomplete problems"] == Measure(0.5, 2)
    only_part = wemath.measure(whole[:1])
    assert only_part["strict score"] == Measure(None, 0)
    assert only_part["two-step"] == Measure(None, 0)


def yes_no(category: str, figure: int, question: int, correct: bool) -> Answer:
    names = {"category": category, "subcategory": "map", "set_id": "0"}
    return Answer({**names, "figure_id": str(figure), "question_id": str(question)}, correct)


def test_hallusion_by_hand():
    answers = [
        yes_no("VD", 0, 0, True),
        yes_no("VD", 0, 1, True),
        yes_no("VD", 1, 0, True),
        yes_no("VD", 1, 1, False),
        yes_no("VS", 0, 0, True),  # a question without its figure is in no figure
        yes_no("VS", 1, 0, False),
    ]
    measures = hallusion.measure(answers)
    assert measures["aAcc"] == Measure(4 / 6, 6)
    assert measures["qAcc"] == Measure(1 / 3, 3)  # VD question 0; not VD 1, not VS 0
    assert measures["fAcc"] == Measure(1 / 3, 3)  # VD figure 0; not VD 1, not VS 1
    assert measures["category: VD"] == Measure(3 / 4, 4)


def test_hallusion_against_an_oracle():
    rng = random.Random(1)
    answers = [
        yes_no(category, figure, question, rng.random() < 0.8)
        for category in ("VD", "VS")
        for figure in range(4)
        for question in range(3)
    ]
    measures = hallusion.measure(answers)
    pairs = []
    figures = []
    for category in ("VD", "VS"):
        chosen = [each for each in answers if each.facts["category"] == category]
        for number in "012":
            pair = [each.correct for each in chosen if each.facts["question_id"] == number]
            pairs.append(False not in pair)
        for number in "0123":
            figure = [each.correct for each in chosen if each.facts["figure_id"] == number]
            if category == "VD" or number != "0":
                figures.append(False not in figure)
    assert measures["aAcc"].value == sum(each.correct for each in answers) / 24
    assert measures["qAcc"] == Measure(sum(pairs) / 6, 6)
    assert measures["fAcc"] == Measure(sum(figures) / 7, 7)


def test_mathverse_has_versions_and_leaves_text_only_out_of_the_overall_accuracy():
    facts = {"question_type": "free-form", "subject": "Plane", "subfield": "Angle"}
    versions = ["Text Dominant", "Text Dominant", "Vision Only", "Text Only"]
    marks = [True, False, True, False]
    answers = [
        Answer({**facts, "problem_version": version}, mark)
        for version, mark in zip(versions, marks, strict=True)
    ]
    measures = mathverse.measure(answers)
    assert measures["accuracy"] == Measure(2 / 3, 3)
    assert measures["problem_version: Text Dominant"] == Measure(1 / 2, 2)
    assert measures["problem_version: Vision Only"] == Measure(1.0, 1)
    assert measures["problem_version: Text Only"] == Measure(0.0, 1)
    assert measures["subfield: Angle"] == Measure(2 / 3, 3)


def test_mathvista_counts_a_question_for_each_of_its_skills():
    names = ("question_type", "answer_type", *mathvista.METADATA)
    facts = dict.fromkeys(names, "same")
    both = Answer({**facts, "skills": ["algebraic", "logical"]}, True)
    one = Answer({**facts, "skills": ["logical"], "grade": None}, False)
    measures = mathvista.measure([both, one])
    assert measures["accuracy"] == Measure(1 / 2, 2)
    assert measures["skills: algebraic"] == Measure(1.0, 1)
    assert measures["skills: logical"] == Measure(1 / 2, 2)
    assert measures["grade: none"] == Measure(0.0, 1)


def test_mmmu_pro_is_the_mean_of_its_settings():
    def answers(setting: str, marks: list[bool]) -> list[Answer]:
        facts = {"setting": setting, "subject": "Art", "domain": "Art and Design"}
        return [Answer(facts, mark) for mark in marks]

    standard = answers("standard", [True, True, True, False])
    measures = mmmu_pro.measure([*standard, *answers("vision", [True, False])])
    assert measures["standard"] == Measure(3 / 4, 4)
    assert measures["vision"] == Measure(1 / 2, 2)
    assert measures["mean of both"] == Measure(5 / 8, 6)
    assert measures["vision, subject: Art"] == Measure(1 / 2, 2)
    assert mmmu_pro.measure(standard)["mean of both"] == Measure(None, 4)


def test_mmmu_weights_subjects_by_their_questions():
    """The published overall accuracy is the mean of the subjects, weighted by their size."""
    sizes = {"Art": (3, 1), "Math": (1, 1)}  # questions, right answers
    answers = []
    for subject, (questions, right) in sizes.items():
        facts = {"subject": subject, "domain": mmmu.DOMAIN_OF[subject], "question_type": "open"}
        answers += [Answer(facts, number < right) for number in range(questions)]
    measures = mmmu.measure(answers)
    assert measures["accuracy"] == Measure((3 * (1 / 3) + 1 * 1) / 4, 4)
    assert measures["domain: Science"] == Measure(1.0, 1)
    assert measures["subject: Art"] == Measure(1 / 3, 3)
    assert len(mmmu.DOMAIN_OF) == 30


def test_mathvision_by_subject_and_level():
    facts = {"question_type": "free form", "subject": "algebra", "level": "3"}
    measures = mathvision.measure([Answer(facts, True), Answer({**facts, "level": "4"}, False)])
    assert measures["accuracy"] == Measure(1 / 2, 2)
    assert measures["level: 3"] == Measure(1.0, 1)
    assert measures["subject: algebra"] == Measure(1 / 2, 2)
