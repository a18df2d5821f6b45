"""95 % intervals for means over responses of which several answer the same question, and so are not independent."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its interval [low, high] over so many responses and questions; None for fewer than two questions."""

    mean: float | None
    low: float | None
    high: float | None
    responses: int
    questions: int


def mean_interval(values: Sequence[Sequence[float]]) -> Interval:
    """The mean over all responses, with the t interval of a mean of clusters.

    values[Q][*]: the values of each question's responses, any number of them. The standard error is that of the ratio
    (sum of values) / (number of values) over questions, linearised; where each question has equally many values it is
    the standard error of the mean of the question means.
    """
    groups, mean, error = _ratio(values)
    if mean is None:
        return Interval(None, None, None, 0, 0)
    half = _quantile(len(groups)) * error
    return Interval(mean, mean - half, mean + half, _count(groups), len(groups))


def rate_interval(values: Sequence[Sequence[float]]) -> Interval:
    """Like `mean_interval` for values that are 0 or 1, and sound near 0 and 1 too, where the t interval is empty.

    The Wilson interval for the effective number of responses, which is the number of independent ones with the same
    standard error (Korn and Graubard 1998), at most the number of responses. Where all values are equal it is the
    number of questions.
    """
    groups, mean, error = _ratio(values)
    if mean is None:
        return Interval(None, None, None, 0, 0)
    count, spread = _count(groups), mean * (1 - mean)
    effective = (
        len(groups) if spread == 0 else count if error == 0 else min(count, spread / error**2)
    )
    z2 = _quantile(len(groups)) ** 2
    centre = (mean + z2 / (2 * effective)) / (1 + z2 / effective)
    half = sqrt(z2 * spread / effective + z2**2 / (4 * effective**2)) / (1 + z2 / effective)
    return Interval(mean, max(0.0, centre - half), min(1.0, centre + half), count, len(groups))


def _ratio(values: Sequence[Sequence[float]]) -> tuple[list[Sequence[float]], float | None, float]:
    """The questions that have values, the mean over all values and its standard error."""
    groups = [group for group in values if len(group)]
    if len(groups) < 2:
        return [], None, 0.0
    count = _count(groups)
    mean = sum(sum(group) for group in groups) / count
    residuals = sum((sum(group) - mean * len(group)) ** 2 for group in groups)
    return groups, mean, sqrt(residuals * len(groups) / (len(groups) - 1)) / count


def _count(groups: Sequence[Sequence[float]]) -> int:
    return sum(len(group) for group in groups)


def _quantile(questions: int) -> float:
    return float(t.ppf((1 + CONFIDENCE) / 2, questions - 1))
