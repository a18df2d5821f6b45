# ruff: noqa: RUF001
"""Notations that the labeled answers do not have: (answer, gold, verdict)."""

import logging

import pytest

from verl_prism.rewards.grader.deadline import deadline
from verl_prism.rewards.grader.grading import grade

TINY_NUMBERS = [
    ("0", "1.6e-19", False),
    ("6.63e-34", "0", False),
    ("0", "6.63e-34 J s", False),
    ("0 kg", "9.11e-31 kg", False),
    ("0 g", "9.11e-31 kg", False),
    ("1e-31 kg", "1e-28 g", True),
    ("0 kg", "0 g", True),
    ("0 °C", "273.15 K", True),
    (r"\sin(\pi)", "0", True),
]
RANGES = [
    ("20-29", "30-39", False),
    ("1990-1995", "1995-2000", False),
    ("10%-20%", "20%-30%", False),
    ("2-4 hours", "5-7 hours", False),
    ("10 to 20", "20 to 40", False),
    ("4-3", "3-4", False),
    ("3-1-2", "2-1-1", False),
    ("10-20", "10-20%", False),
    ("2-4 hours", "2-4 minutes", False),
    ("-1", "5-6", False),
    ("8-4", "4", False),
    ("3-5", "3 to 5", True),
    ("3–5", "3 - 5", True),
    ("between 2 and 4 hours", "120-240 minutes", True),
    ("from 5 to 6", "5-6", True),
    ("about 20-30", "20-30", True),
    ("2-4", "2-4 hours", True),
    ("$10-20", "$10 to $20", True),
    ("10%-20%", "10-20%", True),
    ("0.1-0.2", "10-20%", True),
    ("-5 to 3", "-5 to 3 °C", True),
    ("2-3 million", "2,000,000-3,000,000", True),
    ("3 to 4", "3:4", True),
    ("6 to 8", "3/4", True),
    ("7 - 2 = 5", "5", True),
    ("3-4i", "-4i+3", True),
    ("5-2π", "-2π+5", True),
    ("3 m s-1", "3 m/s", True),
]
NAMES_WITH_DIGITS = [
    ("N2O", "NO2", False),
    ("CO2", "C2O", False),
    ("2CO", "CO2", False),
    ("Na2SO4", "Na4SO2", False),
    ("N2", "2N", False),
    ("B12", "12B", False),
    ("2D", "D2", False),
    ("A1B2", "A2B1", False),
    ("Q1-Q2", "Q2-Q3", False),
    ("H_2O", "H2O", True),
    ("3E8", "300000000", True),
    ("x2", "2x", True),
]
CAPITALS = [
    ("aa", "AA", False),
    ("Aa", "AA", False),
    ("rryy", "RrYy", False),
    ("The genotype is Aa.", "Aa", True),
    ("ii", "II", True),
    ("RED", "red", True),
]
CHOICES = [
    ("(J) dog", "J", True),
    ("J) dog", "J", True),
    ("I. dog", "I", True),
    ("dog", "(J) dog", True),
    ("The answer is I.", "I", True),
    ("The answer I choose is B", "B", True),
    ("The answer is A and I am sure", "A", True),
    ("A. I and II only", "A", True),
    ("I. 3 II. 4", "I. 3 II. 5", False),
    ("I. 5, II. 6", "I", False),
    ("I: 6 A", "I: 5 A", False),
    ("K", "J", False),
    ("B only", "B", True),
    ("only B", "B", True),
    ("B and C only", "B, C", True),
    ("not only B", "B", False),
    ("C, not B", "C", True),
    ("C (not B)", "C", True),
    ("C, not B", "B", False),
    ("A is wrong; B is right", "B", True),
    ("A is right; B is right", "B", False),
    ("Neither A nor B is right", "B", False),
    ("A C", "A, C", True),
    ("B\nD", "B, D", True),
    ("A\nB", "B", False),
    ("(A)(C)", "AC", True),
    ("A、B", "AB", True),
    ("D - 5", "D", True),
    ("A - B", "A", False),
    ("Figure B", "B", True),
    ("Fig. B", "B", True),
    ("Figure B", "A", False),
]
NUMBERS = [
    ("3,5", "3.5", True),
    ("1.234,56", "1234.56", True),
    ("12,5 cm", "12.5 cm", True),
    ("3,5", "5, 3", True),
    ("3, 5", "3.5", False),
    ("1,234", "1.234", False),
    ("minus 5", "-5", True),
    ("negative five", "-5", True),
    ("minus 5", "5", False),
    ("one hundred and twenty-three", "123", True),
    ("two hundred fifty", "250", True),
    ("two thousand five hundred", "2500", True),
    ("two hundred thousand", "200000", True),
    ("one hundred and two hundred", "102", False),
    ("two and three", "5", False),
    ("3 and a half", "3.5", True),
    ("two and three quarters", "2.75", True),
    ("a dozen eggs", "12", True),
    ("1 out of 4", "25%", True),
    ("5 percentage points", "5%", True),
]
UNITS = [
    ("45º", "45°", True),
    ("20ºC", "20 °C", True),
    ("45˚", "45°", True),
    ("5″", "5 in", True),
    ("5″", "5 cm", False),
    ("760 torr", "1 atm", True),
    ("760 mm Hg", "760 mmHg", True),
    ("1 cc", "1 mL", True),
    ("5 mcg", "5 µg", True),
    ("3 ms^-1", "3 m/s", True),
    ("5 K/ms", "5000 K/s", True),
    ("50 J/kg°C", "50 J/(kg °C)", True),
    ("9.8 m/s per second", "9.8 m/s^2", True),
    ("1 A·h", "3600 C", True),
    ("5 nm", "5 Nm", False),
]
RATIOS_DATES_AND_TIMES = [
    ("1:50,000", "1:50000", True),
    ("3:4 ratio", "3:4", True),
    ("2012", "2020-05-03", False),
    ("1/2/2020", "2/4/2020", False),
    ("05/03/2020", "May 3, 2020", True),
    ("05/03/2020", "5 March 2020", True),
    ("5/3/2020", "3/5/2020", False),
    ("5/13/2020", "13/5/2020", True),
    ("2020/05/03", "2020-05-03", True),
    ("Jan", "January", True),
    ("June", "July", False),
    ("12:00 PM", "noon", True),
    ("12:00 AM", "noon", False),
    ("midnight", "12:00 am", True),
]
LABELS = [
    ("pH = 7", "7", True),
    ("R1 = 5", "5", True),
    ("v0 = 5 m/s", "5 m/s", True),
    ("Ek = 5 J", "5 J", True),
    ("ΔH = -5 kJ", "-5 kJ", True),
    ("|AB| = 5", "5", True),
    ("f'(2) = 3", "3", True),
    ("cos(A) = 3/5", "3/5", True),
    ("dy/dx = 2x", "2x", True),
    ("y-intercept = 3", "3", True),
    ("S△ABC = 6", "6", True),
    ("a:b = 1:2", "1:2", True),
    ("AB = CD", "CD = AB", True),
    ("x1 = 3, x2 = 2", "x_1 = 2, x_2 = 3", True),
    ("R1 = 5, R2 = 3", "R1 = 3, R2 = 5", False),
    ("R1 = 5", "R2 = 5", False),
    ("AB = 5", "AC = 5", False),
    ("a:b = 1:2", "b:a = 1:2", False),
    ("sin A = 3/5", "cos A = 3/5", False),
    ("log(x) = 3", "3", False),
    ("|x| = 5", "5", False),
]
INTERVALS_AND_CHEMISTRY = [
    ("|x| < 1", "(-1, 1)", True),
    ("|x| ≤ 2", "[-2, 2]", True),
    ("|x| < 2", "[-2, 2]", False),
    ("ℝ", "(-∞, ∞)", True),
    (r"$x \in \mathbb{R}$", r"(-\infty, \infty)", True),
    (r"$\mathbb{R}^2$", "R^2", True),
    ("Fe3+", "Fe^{3+}", True),
    ("Cl-", "Cl^-", True),
    ("Fe^{2+}", "Fe3+", False),
    ("Na-", "Na^+", False),
    (r"\ce{H2O}", "H2O", True),
    ("2H2 + O2 -> 2H2O", r"2H_2 + O_2 \rightarrow 2H_2O", True),
]
CASES = [
    *TINY_NUMBERS,
    *RANGES,
    *NAMES_WITH_DIGITS,
    *CAPITALS,
    *CHOICES,
    *NUMBERS,
    *UNITS,
    *RATIOS_DATES_AND_TIMES,
    *LABELS,
    *INTERVALS_AND_CHEMISTRY,
]


@pytest.fixture(autouse=True)
def long_deadline(monkeypatch):
    """Let a busy host finish each verdict."""
    monkeypatch.setattr("verl_prism.rewards.grader.grading.deadline", lambda: deadline(30.0))


@pytest.mark.parametrize(("answer", "gold", "right"), CASES)
def test_a_notation_has_the_verdict_of_a_careful_teacher(answer, gold, right, caplog):
    with caplog.at_level(logging.ERROR):
        assert grade(answer, gold) == right
    assert not caplog.records  # `grade` turns an internal error into a logged False


@pytest.mark.parametrize(
    ("answer", "gold", "equivalent", "right"),
    [
        ("A. dog", "B", "dog", False),
        ("A. dog", "dog", "B", False),
        ("(C) 12", "B", "12", False),
        ("B. dog", "B", "dog", True),
        ("dog", "B", "dog", True),
        ("The answer is 12", "B", "12", True),
    ],
)
def test_only_letters_count_if_the_answer_states_one(answer, gold, equivalent, right):
    assert grade(answer, gold, [equivalent]) == right


def test_an_answer_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match="7 is of type int; answers are strings"):
        grade("7", 7)
