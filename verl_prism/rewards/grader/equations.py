"""Comparison of equations, inequalities and formulas."""

import re

from verl_prism.rewards.grader import (
    arithmetic,
    math_verify_pool,
    numeric,
    quantities,
    structure,
    words,
)
from verl_prism.rewards.grader.matching import Same

Sides = tuple[str, str]  # the left and the right side of an equation

ROUNDING = 0.01  # relative error of the second side of `√2 ≈ 1.41`

# `H2O` or `B12`: a name and not a product. `3E8` is a number.
_NUMBERED_NAME = re.compile(r"((?:[A-DF-Z]|(?<![0-9.])E)[a-z]?)([0-9]+)")
_ONE_NAME = re.compile(r"[A-Za-z0-9()]+")
_PLUS = re.compile(r"[-+]")
_LINEAR_TERM = re.compile(r"\s*(?:[0-9.]+\s*\*?)?\s*[a-zA-Z]?\s*(?:/\s*[0-9.]+)?\s*")


def same_equation(
    answer: str, given: Sides | None, gold: str, wanted: Sides | None, same: Same
) -> bool:
    """Return whether an answer and a gold answer, at least one of them an equation, are equal.

    given: the sides of `answer`; wanted: the sides of `gold`. `5` is `x = 5`, and `2x = 4y` is
    `x = 2y`.
    """
    if given and wanted:
        return _same_sides(answer, given, gold, wanted, same)
    if wanted:
        return _names_value(wanted[0]) and same(answer, wanted[1])
    assert given
    return _names_value(given[0]) and same(given[1], gold)


def same_formula(answer: str, gold: str) -> bool:
    """Return whether two inequalities or two formulas are equal."""
    given = structure.inequality(answer)
    wanted = structure.inequality(gold)
    if given and wanted:
        return _same_inequality(given, wanted)
    if given or wanted:
        return False
    if words.is_prose(answer + gold):  # `dog` is not d o g
        return False
    if all(map(_ONE_NAME.fullmatch, (answer, gold))) and _NUMBERED_NAME.search(answer + gold):
        return False  # equal names have equal texts
    answer = _NUMBERED_NAME.sub(r"\1_{\2}", answer)  # `V1 + V2` is no multiple of V
    gold = _NUMBERED_NAME.sub(r"\1_{\2}", gold)
    verdict = numeric.same_values(answer, gold)
    return _verified(answer, gold) if verdict is None else verdict


def rounded_sides(text: str) -> list[str]:
    """Return the two sides of `√2 ≈ 1.41` if they are close, [] if not; other texts unchanged."""
    exact, sign, rounded = text.rpartition("≈")
    sides = structure.equation(exact)
    a = quantities.quantity(sides[1] if sides else exact)
    b = quantities.quantity(rounded)
    if not sign or not a or not b or isinstance(a.value, complex) or isinstance(b.value, complex):
        return [text.replace("≈", "=")]
    error = abs(float(a.value) - float(b.value))
    if error <= ROUNDING * abs(float(a.value)):
        return [exact.strip(), rounded.strip()]
    return []


def _same_sides(answer: str, given: Sides, gold: str, wanted: Sides, same: Same) -> bool:
    left, value = given
    gold_left, gold_value = wanted
    if (left, value) == (gold_value, gold_left):  # `AB = CD` and `CD = AB`
        return True
    if structure.different_labels(left, gold_left):
        return False
    name = structure.variable(left)
    gold_name = structure.variable(gold_left)
    if not name and not gold_name:
        if _is_name(left) and _is_name(gold_left):
            return same(value, gold_value)
        return _equivalent(answer, given, gold, wanted)
    if name == gold_name or structure.is_label(left) or structure.is_label(gold_left):
        if same(value, gold_value):
            return True
        if _is_solved(given) and _is_solved(wanted):
            return False
    if gold_name and _is_constant(gold_value):  # an unsolved equation does not answer `x = 5`
        return False
    return _equivalent(answer, given, gold, wanted)


def _same_inequality(given: tuple[str, str, str], wanted: tuple[str, str, str]) -> bool:
    """Return whether one inequality is a multiple of the other."""
    left, sign, right = given
    gold_left, gold_sign, gold_right = wanted
    ratio = numeric.constant_ratio(f"({left})-({right})", f"({gold_left})-({gold_right})")
    if sign != gold_sign or ratio is None:
        return False
    return ratio > 0 or sign == "≠"


def _is_name(side: str) -> bool:
    """Return whether the left side only names the right side.

    It is a variable, a label such as AB, or a sum such as 3 + 5 whose value is on the right.
    """
    return bool(structure.variable(side)) or structure.is_label(side) or _is_constant(side)


def _names_value(side: str) -> bool:
    """Return whether a left side may be left out: also `cos(A)`, which is no name elsewhere."""
    return _is_name(side) or structure.is_angle_value(side)


def _is_solved(sides: Sides) -> bool:
    """Return whether the right side is readable without the name on the left: `y = 2x`."""
    name, value = sides
    names = arithmetic.evaluate(value, 0)[1]
    return names is not None and name not in names


def _is_constant(text: str) -> bool:
    return quantities.quantity(text) is not None


def _is_linear(side: str) -> bool:
    return all(map(_LINEAR_TERM.fullmatch, _PLUS.split(side)))


def _equivalent(answer: str, given: Sides, gold: str, wanted: Sides) -> bool:
    """Return whether one equation is a multiple of the other, or has the same solutions."""
    left, right = given
    gold_left, gold_right = wanted
    ratio = numeric.constant_ratio(f"({left})-({right})", f"({gold_left})-({gold_right})")
    if ratio is not None:
        return True
    if all(map(_is_linear, (*given, *wanted))):
        return False
    return _verified(answer, gold)


def _verified(answer: str, gold: str) -> bool:
    """Return math-verify's verdict, False if one of the texts is not a formula."""
    if not math_verify_pool.is_formula(answer) or not math_verify_pool.is_formula(gold):
        return False
    return math_verify_pool.verified(answer, gold)
