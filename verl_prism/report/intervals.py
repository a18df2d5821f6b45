"""95 % confidence intervals for means over responses, of which several answer the same question.

Responses to the same question are correlated. The questions are therefore treated as the
independent sampling units (clusters), and each question's responses as one cluster.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval [low, high], and the sample sizes.

    The mean and both bounds are None for fewer than two questions.
    """

    mean: float | None
    low: float | None
    high: float | None
    responses: int
    questions: int


UNDEFINED = Interval(mean=None, low=None, high=None, responses=0, questions=0)


def mean_interval(values: Sequence[Sequence[float]]) -> Interval:
    """Return the mean over all responses, with the t interval of a mean over clusters.

    values[Q][*]: the values of each question's responses, any number per question.

    The standard error is the linearized one of the ratio (sum of values) / (number of values) over
    questions. If all questions have the same number of values, it equals the standard error of the
    mean of the question means.
    """
    clusters = _clusters(values)
    if len(clusters) < 2:
        return UNDEFINED
    mean, error = _mean_and_error(clusters)
    half = _t_quantile(len(clusters)) * error
    return Interval(mean, mean - half, mean + half, _count(clusters), len(clusters))


def rate_interval(values: Sequence[Sequence[float]]) -> Interval:
    """Return the mean of values in {0, 1}, with a Wilson interval for clusters.

    values[Q][*]: as in `mean_interval`. Unlike the t interval, this one also holds near 0 and 1,
    where the t interval shrinks to a point.

    The sample size in Wilson's formula is the effective number of responses (Korn and Graubard,
    1998), and its normal quantile is replaced by that of t.
    """
    clusters = _clusters(values)
    if len(clusters) < 2:
        return UNDEFINED
    mean, error = _mean_and_error(clusters)
    variance = mean * (1 - mean)
    n = _effective_responses(clusters, variance, error)
    z2 = _t_quantile(len(clusters)) ** 2
    center = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = sqrt(z2 * variance / n + z2**2 / (4 * n**2)) / (1 + z2 / n)
    return Interval(
        mean=mean,
        low=max(0.0, center - half),
        high=min(1.0, center + half),
        responses=_count(clusters),
        questions=len(clusters),
    )


def _effective_responses(
    clusters: Sequence[Sequence[float]], variance: float, error: float
) -> float:
    """Return the number of independent responses with the same standard error.

    It is at most the number of responses. If all values are equal, the standard error says nothing
    about the correlation, and each question counts as one response.
    """
    if variance == 0:
        return len(clusters)
    if error == 0:
        return _count(clusters)
    return min(_count(clusters), variance / error**2)


def _clusters(values: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Return the values of each question that has any."""
    return [cluster for cluster in values if len(cluster)]


def _mean_and_error(clusters: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the mean over all values and its standard error, for two or more clusters."""
    count = _count(clusters)
    mean = sum(sum(cluster) for cluster in clusters) / count
    squares = sum((sum(cluster) - mean * len(cluster)) ** 2 for cluster in clusters)
    return mean, sqrt(squares * len(clusters) / (len(clusters) - 1)) / count


def _count(clusters: Sequence[Sequence[float]]) -> int:
    return sum(len(cluster) for cluster in clusters)


def _t_quantile(clusters: int) -> float:
    """Return the two-sided quantile of Student's t with `clusters` - 1 degrees of freedom."""
    return float(t.ppf((1 + CONFIDENCE) / 2, clusters - 1))
