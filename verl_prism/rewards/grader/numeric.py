r"""Values of formulas, and whether they are the same.

Two formulas with variables are the same where they agree at a handful of irrational points (Schwartz and Zippel: other
than by being the same, they almost never do).
"""

import math
from fractions import Fraction

from verl_prism.rewards.grader.arithmetic import Value, evaluate

RELATIVE_TOLERANCE = Fraction(1, 10**6)
ZERO = 1e-12  # what rounding may leave of zero
POINTS = 6


def constant(text: str) -> Value | None:
    """The value of a formula without variables; None for any other text."""
    value, names = evaluate(text, 0)
    return None if names else value


def close(a: Value, b: Value) -> bool:
    """Whether two values agree within the relative tolerance. Exact where both are; no value equals infinity."""
    if a == b:
        return True
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return abs(a - b) <= RELATIVE_TOLERANCE * max(abs(a), abs(b)) or (
            0 in (a, b) and max(abs(a), abs(b)) < ZERO
        )
    try:
        size = max(abs(a), abs(b))
        return math.isfinite(size) and (
            abs(a - b) <= RELATIVE_TOLERANCE * size or (0 in (a, b) and size < ZERO)
        )
    except OverflowError:  # an exact number that no float holds, and a float
        return False


def same_values(a: str, b: str) -> bool | None:
    """Whether two formulas agree wherever both have a value; None where they cannot be read or compared."""
    pairs = _pairs_of_values(a, b)
    return None if pairs is None else all(close(x, y) for x, y in pairs)


def constant_ratio(a: str, b: str) -> float | None:
    """The r for which a = r b wherever both have a value (0 < |r|); None where there is none."""
    ratios = [x / y for x, y in _pairs_of_values(a, b) or () if y]
    if not ratios or any(isinstance(ratio, complex) or not ratio for ratio in ratios):
        return None
    return float(ratios[0]) if all(close(ratio, ratios[0]) for ratio in ratios) else None


def _pairs_of_values(a: str, b: str) -> list[tuple[Value, Value]] | None:
    pairs = []
    for point in range(POINTS):
        (x, x_names), (y, y_names) = evaluate(a, point), evaluate(b, point)
        if x_names is None or y_names is None:
            return None
        if x is not None and y is not None:
            pairs.append((x, y))
        if not x_names and not y_names:
            return pairs or [(math.nan, math.nan)]  # 1/0 equals nothing
    return pairs if len(pairs) >= 2 else None
