r"""Comparison of the values of formulas.

Two formulas with variables are equal if they agree at a handful of irrational points. By the
Schwartz-Zippel lemma, different formulas almost never do.
"""

import math
from fractions import Fraction

from verl_prism.rewards.grader.arithmetic import Value, evaluate

RELATIVE_TOLERANCE = Fraction(1, 10**6)
ZERO = 1e-12  # a smaller inexact value may be zero with a rounding error
POINTS = 6


def constant(text: str) -> Value | None:
    """Return the value of a formula without variables, None for any other text."""
    value, names = evaluate(text, 0)
    return None if names else value


def close(a: Value, b: Value) -> bool:
    """Return whether two values agree within the relative tolerance.

    Infinity is close only to itself.
    """
    if a == b:
        return True
    try:
        size = max(abs(a), abs(b))
        exact = isinstance(a, Fraction) and isinstance(b, Fraction)
        if not exact and not math.isfinite(size):
            return False
        if abs(a - b) <= RELATIVE_TOLERANCE * size:
            return True
        return not exact and 0 in (a, b) and size < ZERO
    except OverflowError:  # an exact number that does not fit into a float, and a float
        return False


def same_values(a: str, b: str) -> bool | None:
    """Return whether two formulas agree at all points where both have a value.

    None if they cannot be read or compared.
    """
    pairs = _pairs_of_values(a, b)
    if pairs is None:
        return None
    return all(close(x, y) for x, y in pairs)


def constant_ratio(a: str, b: str) -> float | None:
    """Return the number r != 0 with a = r b at all points where both have a value, None if none.

    `2x - 4` is 2 times `x - 2`.
    """
    ratios = [x / y for x, y in _pairs_of_values(a, b) or () if y]
    if not ratios:
        return None
    for ratio in ratios:
        if isinstance(ratio, complex) or not ratio or not close(ratio, ratios[0]):
            return None
    return float(ratios[0])


def _pairs_of_values(a: str, b: str) -> list[tuple[Value, Value]] | None:
    pairs = []
    for point in range(POINTS):
        x, x_names = evaluate(a, point)
        y, y_names = evaluate(b, point)
        if x_names is None or y_names is None:
            return None
        if x is not None and y is not None:
            pairs.append((x, y))
        if not x_names and not y_names:  # constants have the same value at each point
            return pairs or [(math.nan, math.nan)]  # 1/0 equals nothing
    return pairs if len(pairs) >= 2 else None
