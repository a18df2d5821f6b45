import copy
import io
import random

import pytest
from rich.console import Console

from verl_prism.measures.marks import QuestionMarks, comparisons, pass_at_k
from verl_prism.measures.teacher import TeacherComparison
from verl_prism.report.measures_table import (
    difference_cell,
    distance_cell,
    measures_markdown,
    measures_table,
)

QUESTIONS = 40


def policy_marks(rng: random.Random, rate: float) -> list[QuestionMarks]:
    def draw() -> dict:
        return {"accuracy": rng.random() < rate, "format": True, "length": rng.randrange(20, 30)}

    return [QuestionMarks(draw(), [draw() for _ in range(4)]) for _ in range(QUESTIONS)]


def response(number: int) -> str:
    return f"<caption>A {number}.</caption><think>It is {number}.</think><answer>1</answer>"


@pytest.fixture(scope="module")
def full() -> dict:
    rng = random.Random(0)
    marks = {name: policy_marks(rng, rate) for name, rate in (("SFT", 0.3), ("aligned", 0.5))}
    comparison = TeacherComparison([response(0)] * QUESTIONS, 50, 0)
    policies = {}
    for number, (name, own) in enumerate(marks.items()):
        texts = [[response(number)] * 3 + ["invalid"]] * QUESTIONS
        policies[name] = {"pass_at_k": pass_at_k(own), "teacher": comparison.policy(texts)}
    return {
        "policies": policies,
        "teacher": comparison.baseline(),
        "comparisons": comparisons(marks, 50, 0),
    }


@pytest.fixture
def without_teacher(full) -> dict:
    results = copy.deepcopy(full)
    results["teacher"] = None
    for policy in results["policies"].values():
        del policy["teacher"]
    return results


def printed(results: dict, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(measures_table(results))
    return console.export_text()


def cells(shown: str, policy: str) -> list[str]:
    (line,) = (line for line in shown.splitlines() if line.strip().startswith(policy))
    return line.split()


def test_the_table_fits_a_terminal_of_100_columns(full):
    wide, narrow = printed(full, 300), printed(full, 100)
    for row in ("SFT", "aligned", "(teacher)"):
        assert cells(narrow, row) == cells(wide, row)
    assert cells(narrow, "SFT")[3:11] == ["0.00", "±0.00"] * 4
    assert cells(narrow, "(teacher)")[1:5] == ["≤0.00"] * 4


def test_the_table_without_a_teacher(without_teacher):
    shown = printed(without_teacher, 100)
    assert "teacher_response" in shown
    assert "pass@4" in shown
    assert "(teacher)" not in shown


def test_sections_of_the_markdown(full):
    text = measures_markdown(full)
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## pass@k",
        "## Differences between policies",
        "## Distance to the teacher",
        "## A fresh probe",
    ]
    assert "| policy | pass@1 | pass@2 | pass@4 |" in text
    assert "| aligned minus SFT | +" in text
    assert "| aligned | 0.00 ±0.00 | 0.00 ±0.00 | 0.00 ±0.00 | 0.00 ±0.00 | 40 |" in text
    assert "| noise floor | ≤0.00 | ≤0.00 | ≤0.00 | ≤0.00 |  |" in text
    assert "40 valid responses" in text
    assert text.startswith("\n## ")
    assert text.endswith("|\n")


def test_every_line_of_a_markdown_table_has_as_many_cells_as_its_header(full):
    for part in measures_markdown(full).split("\n\n"):
        lines = [line for line in part.strip().splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_the_markdown_without_a_teacher_says_so(without_teacher):
    text = measures_markdown(without_teacher)
    assert "no column teacher_response" in text
    assert "fresh probe" not in text


def test_one_policy_has_no_differences(full):
    results = {**full, "comparisons": []}
    assert "Differences" not in measures_markdown(results)


def test_cells():
    difference = {"difference": 0.106, "low": 0.0811, "high": 0.13}
    assert difference_cell("accuracy", difference) == "+10.6 [+8.1, +13.0]"
    assert difference_cell("reward", difference) == "+0.106 [+0.081, +0.130]"
    assert difference_cell("length", difference) == "+0.1 [+0.1, +0.1]"
    none = {"difference": None, "low": None, "high": None}
    assert difference_cell("accuracy", none) == "none"
    assert distance_cell({"mean": 0.123, "low": 0.1, "high": 0.13}) == "0.12 ±0.02"
    assert distance_cell({"mean": None, "low": None, "high": None}) == "none"
