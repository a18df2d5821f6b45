import csv
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_prism.rewards.grader import math_verify_pool
from verl_prism.rewards.grader.deadline import deadline
from verl_prism.rewards.grader.grading import grade


@dataclass(frozen=True)
class Labeled:
    """An answer, its gold answer and the verdict of a careful teacher."""

    kind: str
    gold: str
    answer: str
    right: bool
    equivalents: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.answer!r} is {'right' if self.right else 'wrong'} for {self.gold!r}"


def read_answers() -> list[Labeled]:
    with Path(__file__).with_name("answers.tsv").open(encoding="utf-8") as file:
        next(file)  # a comment
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        Labeled(
            row["class"],
            row["gold"].replace("⏎", "\n"),
            row["answer"].replace("⏎", "\n"),
            {"right": True, "wrong": False}[row["verdict"]],
            tuple(filter(None, row["equivalents"].split("|"))),
        )
        for row in rows
    ]


ANSWERS = read_answers()


@pytest.fixture(scope="module", autouse=True)
def math_process():
    math_verify_pool.start()


@pytest.fixture(autouse=True)
def no_internal_errors(caplog):
    """`grade` turns an internal error into a logged False."""
    with caplog.at_level(logging.ERROR, logger="verl_prism.rewards.grader.grading"):
        yield
    assert not [
        record for record in caplog.records if record.name == "verl_prism.rewards.grader.grading"
    ]


@pytest.fixture(autouse=True)
def long_deadline(monkeypatch):
    """Let a busy host finish each verdict. test_hostile.py tests the deadline."""
    monkeypatch.setattr("verl_prism.rewards.grader.grading.deadline", lambda: deadline(30.0))


@pytest.mark.parametrize("labeled", ANSWERS, ids=str)
def test_labeled_answers(labeled):
    assert grade(labeled.answer, labeled.gold, labeled.equivalents) == labeled.right


def test_each_class_of_answers_has_both_verdicts():
    assert len({(a.gold, a.answer) for a in ANSWERS}) == len(ANSWERS) >= 300
    kinds = {a.kind for a in ANSWERS}
    assert {(a.kind, a.right) for a in ANSWERS} == {
        (kind, right) for kind in kinds for right in (True, False)
    }


# Answers that the public implementation misjudges (gold, answer, verdict).
MISJUDGED = [
    ("1000", "1,000", True),
    ("5 lb", "5 kg", False),
    ("(A) 3, 4", "A", True),
    ("A", "The answer is a rectangle", False),
    ("B", "Answer is A … the answer is B", True),
    ("x=1, x=2", "x=2, x=1", True),
    ("(3, 4)", "(3,4)", True),
    ("(3,4)", "(34)", False),
    ("[1, 2]", "(1, 2)", False),
    ("3.1416", "3.14", False),
    ("0.5", "50%", True),
    ("50%", "50", False),
    ("50", "50%", False),
    ("B", "option B", True),
    ("C. dog", "C", True),
    ("30 degrees", "30", True),
    ("A", "a", True),
]


@pytest.mark.parametrize(("gold", "answer", "right"), MISJUDGED)
def test_answers_that_the_public_implementation_misjudges(gold, answer, right):
    assert grade(answer, gold) == right


def test_equivalents_count_as_gold():
    assert grade("half", "0.25", ["a half", "half"])
    assert not grade("third", "0.25", ["a half", "half"])


integers = st.integers(-(10**6), 10**6)
decimals = st.decimals(-1000, 1000, places=3, allow_nan=False).map(str)
fractions = st.fractions(-100, 100, max_denominator=99)
numbers = st.one_of(
    integers.map(str),
    integers.map("{:,}".format),
    decimals,
    fractions.map(str),
    fractions.map(
        lambda f: rf"{'-' if f < 0 else ''}\frac{{{abs(f.numerator)}}}{{{f.denominator}}}"
    ),
    integers.map("{}%".format),
    st.builds("{}e{}".format, decimals, st.integers(-20, 20)),
    st.builds(r"{} \times 10^{{{}}}".format, decimals, st.integers(-20, 20)),
    st.integers(2, 99).map(r"\sqrt{{{}}}".format),
    st.integers(2, 99).map(r"{}\pi".format),
)
unit_names = st.sampled_from(
    [
        "cm",
        "km",
        "kg",
        "g",
        "s",
        "min",
        "h",
        "L",
        "mL",
        "m/s",
        "km/h",
        "°C",
        "°F",
        "°",
        "m²",
        "N",
        "J",
        "dollars",
        "people",
    ]
)
unit_quantities = st.builds("{} {}".format, integers.map(str), unit_names)
letters = st.sampled_from("ABCDEFGH")
letter_wordings = st.sampled_from(
    [
        "{}",
        "({})",
        "{}.",
        "{})",
        "**{}**",
        "option {}",
        "The answer is ({})",
        r"\text{{{}}}",
        "\\boxed{{{}}}",
    ]
)
choices = st.builds(str.format, letter_wordings, letters)
points = st.lists(numbers.filter(lambda n: "," not in n), min_size=2, max_size=4).map(
    lambda n: f"({', '.join(n)})"
)
intervals = st.builds(
    "{}{}, {}{}".format, st.sampled_from("[("), decimals, decimals, st.sampled_from("])")
)
lists = st.lists(numbers, min_size=2, max_size=5).map(", ".join)
sets = st.lists(integers.map(str), min_size=1, max_size=5).map(lambda n: rf"\{{{', '.join(n)}\}}")
terms = st.builds("{}{}^{}".format, st.integers(1, 20), st.sampled_from("xyz"), st.integers(1, 4))
expressions = st.lists(terms, min_size=1, max_size=4).map(" + ".join)
equations = st.builds("{} = {}".format, st.sampled_from("xyt"), st.one_of(numbers, expressions))
words = st.lists(
    st.sampled_from(
        ["red", "blue", "square", "dog", "cat", "the", "a", "big", "left", "of", "tree"]
    ),
    min_size=1,
    max_size=5,
).map(" ".join)
times = st.builds(
    "{}:{:02} {}".format, st.integers(1, 12), st.integers(0, 59), st.sampled_from(["am", "pm"])
)
ratios = st.builds("{}:{}".format, st.integers(1, 20), st.integers(1, 9))

CLASSES = {
    "numbers": numbers,
    "units": unit_quantities,
    "choices": choices,
    "points": points,
    "intervals": intervals,
    "lists": lists,
    "sets": sets,
    "expressions": expressions,
    "equations": equations,
    "words": words,
    "times": times,
    "ratios": ratios,
}
WORDINGS = [
    "{}",
    " {} ",
    "${}$",
    r"\boxed{{{}}}",
    r"\({}\)",
    "**{}**",
    "The answer is {}",
    "Answer: {}",
    "The final answer is {}.",
]
each_class = pytest.mark.parametrize("name", CLASSES)


@each_class
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_answer_equals_itself_in_any_wording(name, data):
    answer = data.draw(CLASSES[name])
    wordings = [w for w in WORDINGS if not (name == "choices" and "nswer" in w)]
    wording = data.draw(st.sampled_from(wordings))
    if answer.startswith("$") or "boxed" in answer:
        wording = "{}"
    assert grade(answer, answer)
    assert grade(wording.format(answer), answer)


@each_class
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_verdict_is_symmetric(name, data):
    a, b = data.draw(CLASSES[name]), data.draw(CLASSES[name])
    assert grade(a, b) == grade(b, a)


@settings(max_examples=100, deadline=None)
@given(numbers, st.sampled_from(["{} or {}", "either {} or {}", "{} and {}", "{}, {}"]))
def test_two_answers_are_wrong(number, hedge):
    assert not grade(hedge.format(number, "977"), number)


@settings(deadline=None)
@given(integers, integers)
def test_integers_may_have_separators(a, b):
    assert grade(f"{a:,}", str(b)) == (abs(a - b) <= 1e-6 * max(abs(a), abs(b)))


@settings(deadline=None)
@given(fractions, fractions)
def test_fractions_are_compared_exactly(a, b):
    spelled = rf"\frac{{{a.numerator}}}{{{a.denominator}}}"
    assert grade(spelled, str(b)) == (abs(a - b) <= Fraction(1, 10**6) * max(abs(a), abs(b)))


@settings(max_examples=50, deadline=None)
@given(st.lists(integers, min_size=2, max_size=6, unique=True), st.randoms())
def test_only_points_have_an_order(items, random):
    mixed = random.sample(items, len(items))
    a, b = ", ".join(map(str, items)), ", ".join(map(str, mixed))
    assert grade(a, b)
    assert grade(rf"\{{{a}\}}", rf"\{{{b}\}}")
    assert grade(f"({a})", f"({b})") == (items == mixed)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-9, 9), st.sampled_from("xyz")), min_size=1, max_size=5),
    st.randoms(),
)
def test_sums_may_be_reordered(addends, random):
    spelled = [
        "+".join(f"({k})*{x}" for k, x in order)
        for order in (addends, random.sample(addends, len(addends)))
    ]
    assert grade(*spelled)
    assert not grade(spelled[0] + "+1", spelled[1])


@settings(max_examples=300, deadline=None)
@given(st.text(), st.text())
def test_any_text_has_a_verdict(answer, gold):
    assert grade(answer, gold) in (True, False)


ALPHABET = "0123456789.,:;/%$\\{}()[]^*+-=<>|_! xyeABabc±π√°∞ \n"
formula_text = st.lists(
    st.one_of(
        st.sampled_from(list(ALPHABET)),
        st.sampled_from([r"\frac", r"\sqrt", r"\boxed", r"\text", " or ", "and ", "cm"]),
    ),
    max_size=25,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(formula_text, formula_text)
def test_any_formula_has_a_verdict(answer, gold):
    assert grade(answer, gold) in (True, False)
    assert grade(answer, answer) == bool(answer.strip())


def test_threads_give_the_same_verdicts():
    sample = ANSWERS[::3]
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda a: grade(a.answer, a.gold, a.equivalents), sample))
    assert verdicts == [a.right for a in sample]


def test_most_answers_load_no_sympy():
    code = """
import sys
from verl_prism.rewards.grader import math_verify_pool
from verl_prism.rewards.grader.grading import grade
math_verify_pool.verified = None
grade("9", "8")
grade("A or B", "A")
grade("x^2+2x+1", "(x+1)^2")
grade("5 km", "5000 m")
grade("{2, 1}", "{1, 2}")
assert "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
