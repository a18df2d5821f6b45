import itertools
import math

import numpy as np
import pytest
from scipy import stats

from verl_prism.report.intervals import mean_interval, rate_interval


def draw(rng, questions: int, samples: int, rate: float, concentration: float) -> list[list[float]]:
    """Draw 0 or 1 per response; a small `concentration` correlates the responses to a question."""
    rates = rng.beta(rate * concentration, (1 - rate) * concentration, size=questions)
    return [rng.binomial(1, p, size=samples).astype(float).tolist() for p in rates]


def test_equal_cluster_sizes_give_the_t_interval_of_the_question_means():
    values = draw(np.random.default_rng(0), 80, 4, 0.4, 1.0)
    means = [np.mean(group) for group in values]
    low, high = stats.t.interval(0.95, 79, np.mean(means), stats.sem(means))
    interval = mean_interval(values)
    assert (interval.mean, interval.low, interval.high) == pytest.approx(
        (np.mean(means), low, high)
    )
    assert (interval.responses, interval.questions) == (320, 80)


@pytest.mark.parametrize("function", [mean_interval, rate_interval])
def test_interval_agrees_with_a_bootstrap_over_questions_of_unequal_size(function):
    rng = np.random.default_rng(1)
    values = [group[: rng.integers(0, 5)] for group in draw(rng, 300, 4, 0.3, 1.0)]
    means = []
    for _ in range(4000):
        drawn = [values[i] for i in rng.integers(0, 300, size=300)]
        means.append(np.mean(np.concatenate(drawn)))
    interval = function(values)
    assert interval.mean == pytest.approx(np.mean(np.concatenate(values)))
    assert (interval.low, interval.high) == pytest.approx(
        np.quantile(means, [0.025, 0.975]), abs=0.006
    )


@pytest.mark.parametrize("rate", [0.3, 0.97])
def test_interval_covers_the_true_rate_in_95_percent_of_samples(rate):
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(600):
        interval = rate_interval(draw(rng, 300, 4, rate, 0.5))
        covered.append(interval.low <= rate <= interval.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)


def test_treating_responses_as_independent_would_undercover():
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(600):
        responses = itertools.chain.from_iterable(draw(rng, 100, 4, 0.3, 0.5))
        interval = mean_interval([[value] for value in responses])
        covered.append(interval.low <= 0.3 <= interval.high)
    assert np.mean(covered) < 0.85


@pytest.mark.parametrize(("value", "low", "high"), [(1.0, 0.99, 1.0), (0.0, 0.0, 0.01)])
def test_a_rate_of_0_or_1_has_an_interval_of_positive_width(value, low, high):
    interval = rate_interval([[value] * 4] * 500)
    assert interval.mean == value
    assert low <= interval.low <= interval.high <= high
    assert interval.high - interval.low > 0.005


def test_every_question_half_right():
    interval = rate_interval([[0.0, 1.0]] * 50)
    assert interval.mean == 0.5
    assert math.isfinite(interval.low)


@pytest.mark.parametrize("values", [[], [[], []], [[1.0, 0.0]], [[1.0], []]])
def test_fewer_than_two_questions_have_no_interval(values):
    assert rate_interval(values).mean is None
    assert mean_interval(values).mean is None
