import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from verl_prism.measures.bootstrap import question_weights
from verl_prism.measures.proxies import (
    PROXIES,
    distance,
    js_distance,
    length_bin,
    noise_floor,
)
from verl_prism.response import parse_response

COUNTS = st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any)


@given(COUNTS, COUNTS)
def test_the_distance_equals_scipys(p, q):
    found = js_distance(np.array(p, float), np.array(q, float))
    assert 0 <= found <= 1
    expected = jensenshannon(p, q, base=2)
    # scipy takes the root of a negative number that rounding leaves of 0.
    expected = 0.0 if math.isnan(expected) else expected
    assert found == pytest.approx(expected, abs=1e-7)


@given(COUNTS)
def test_equal_distributions_have_distance_0(p):
    assert js_distance(np.array(p, float), 3.0 * np.array(p)) == pytest.approx(0, abs=1e-7)


def test_the_proxies_of_a_response():
    response = parse_response(
        "<caption>- a photo\n- two digits</caption>"
        "<think>Step 1: read. It is 3 and 5.\nStep 2: add.\nStep 3: done.</think>"
        "<answer>8</answer>"
    )
    found = {name: proxy(response) for name, proxy in PROXIES.items()}
    assert found == {
        "caption_items": 2,
        "reasoning_steps": 3,
        "caption_length": length_bin(4),
        "reasoning_length": length_bin(15),
    }


def test_bins_of_lengths():
    assert len({length_bin(count) for count in range(8)}) == 8
    for count in range(8, 5000):
        upper = math.floor(count * 1.18)
        assert length_bin(upper) - length_bin(count) <= 1
    bins = [length_bin(count) for count in range(5000)]
    assert bins == sorted(bins)


def looped(teacher, policy, weights) -> float:
    """The definition, one response at a time, with scipy's distance."""
    bins = sorted(set(teacher) | {own for each in policy for own in each})
    p, q = np.zeros(len(bins)), np.zeros(len(bins))
    for target, each, times in zip(teacher, policy, weights, strict=True):
        p[bins.index(target)] += times
        for own in each:
            q[bins.index(own)] += times / len(each)
    return jensenshannon(p, q, base=2)


def test_the_distance_and_its_interval_equal_a_loop():
    rng = np.random.default_rng(0)
    teacher = rng.integers(3, 6, 40).tolist()
    policy = [rng.integers(2, 6, rng.integers(1, 5)).tolist() for _ in range(40)]
    found = distance(teacher, policy, 100, 7)
    assert found.mean == pytest.approx(looped(teacher, policy, np.ones(40)))
    weights = np.concatenate(list(question_weights(40, 100, 7)))
    resampled = np.array([looped(teacher, policy, row) for row in weights])
    low, high = np.quantile(resampled, [0.025, 0.975]) - resampled.mean() + found.mean
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.questions, found.responses) == (40, sum(map(len, policy)))


def test_invalid_and_missing_responses_are_left_out():
    teacher = [1, None, 2, 3, 1]
    policy = [[1, None], [2, 2], [None, None], [3, 3], [2, 1]]
    found = distance(teacher, policy, 50, 0)
    assert (found.questions, found.responses) == (3, 5)
    assert found.mean == pytest.approx(jensenshannon([2, 0, 1], [1.5, 0.5, 1], base=2))


@pytest.mark.parametrize(
    ("teacher", "policy"),
    [([], []), ([1], [[1]]), ([None, None], [[1], [1]]), ([1, 1], [[None], [None]])],
)
def test_too_few_questions(teacher, policy):
    assert distance(teacher, policy, 50, 0).mean is None


def test_equal_texts_have_distance_0():
    found = distance([4] * 30, [[4, 4]] * 30, 50, 0)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert noise_floor([4] * 30, 50, 0).high == 0


def test_disjoint_texts_have_distance_1():
    found = distance([4] * 30, [[5, 6]] * 30, 50, 0)
    assert (found.mean, found.low, found.high) == pytest.approx((1, 1, 1))


def test_the_floor_of_nothing():
    assert noise_floor([None, None], 50, 0).high is None


@pytest.mark.parametrize("samples", [1, 4])
def test_a_policy_equal_to_the_teacher_is_below_the_floor(samples):
    """2.5 % are above it with one sample per question, and fewer with several."""
    rng = np.random.default_rng(3)
    above = []
    for seed in range(300):
        teacher = rng.poisson(6, 200).tolist()
        policy = rng.poisson(6, (200, samples)).tolist()
        floor = noise_floor(teacher, 200, seed)
        above.append(distance(teacher, policy, 2, seed).mean > floor.high)
    assert np.mean(above) <= 0.055
    if samples == 1:
        assert np.mean(above) > 0


def test_a_policy_unlike_the_teacher_is_above_the_floor():
    rng = np.random.default_rng(4)
    teacher = rng.poisson(6, 200).tolist()
    policy = rng.poisson(8, (200, 2)).tolist()
    found = distance(teacher, policy, 300, 0)
    assert found.low > noise_floor(teacher, 300, 0).high


def test_the_interval_contains_the_distance_at_this_sample_size_in_95_percent_of_samples():
    rng = np.random.default_rng(5)
    intervals = []
    for seed in range(300):
        teacher = rng.poisson(6, 200).tolist()
        policy = rng.poisson(8, (200, 2)).tolist()
        intervals.append(distance(teacher, policy, 200, seed))
    expected = np.mean([interval.mean for interval in intervals])
    covered = [interval.low <= expected <= interval.high for interval in intervals]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.04)
