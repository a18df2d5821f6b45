"""pass@k: the probability that at least one of k sampled responses is accurate."""

from collections.abc import Sequence
from math import comb

from verl_prism.report.intervals import Interval, rate_interval


def pass_at_k(samples: int, accurate: int, k: int) -> float:
    """Return the unbiased estimate for one question, 1 - C(n - c, k) / C(n, k) (Chen et al., 2021).

    samples: n, of which `accurate` are right (c).
    """
    assert 0 <= accurate <= samples, f"{accurate} of {samples} samples are accurate"
    assert 1 <= k <= samples, f"pass@{k} needs {k} samples or more, not {samples}"
    return 1 - comb(samples - accurate, k) / comb(samples, k)


def powers_of_two(samples: int) -> list[int]:
    """Return 1, 2, 4, … up to the number of samples."""
    return [2**exponent for exponent in range(samples.bit_length())]


def question_values(accurate: Sequence[Sequence[float]], k: int) -> list[float]:
    """Return pass@k of each question. accurate[Q][S]: 1 for an accurate response, else 0."""
    return [pass_at_k(len(given), round(sum(given)), k) for given in accurate]


def pass_at_k_intervals(accurate: Sequence[Sequence[float]]) -> dict[int, Interval]:
    """Return pass@k for k = 1, 2, 4, … S, with intervals over questions.

    accurate[Q][S]: 1 for an accurate response, else 0. pass@1 is the accuracy, with its interval.
    """
    samples = len(accurate[0])
    intervals = {}
    for k in powers_of_two(samples):
        # A question counts as S responses with its value: as many as the value was estimated from.
        values = [[value] * samples for value in question_values(accurate, k)]
        intervals[k] = rate_interval(values)
    return intervals
