import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_prism.measures.pass_at_k import pass_at_k, pass_at_k_intervals, powers_of_two
from verl_prism.report.intervals import rate_interval


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_it_is_the_share_of_subsets_with_an_accurate_sample(samples, data):
    k = data.draw(st.integers(1, len(samples)))
    subsets = list(itertools.combinations(samples, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(len(samples), sum(samples), k) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("samples", "ks"), [(1, [1]), (2, [1, 2]), (7, [1, 2, 4]), (8, [1, 2, 4, 8])]
)
def test_powers_of_two(samples, ks):
    assert powers_of_two(samples) == ks


def test_pass_at_1_is_the_accuracy_with_its_interval():
    accurate = [[1.0, 0.0, 0.0, 1.0], [0.0] * 4, [1.0] * 4, [0.0, 0.0, 0.0, 1.0]]
    found = pass_at_k_intervals(accurate)
    accuracy = rate_interval(accurate)
    assert list(found) == [1, 2, 4]
    assert found[1].mean == pytest.approx(accuracy.mean)
    assert (found[1].low, found[1].high) == pytest.approx((accuracy.low, accuracy.high))
    assert found[4].mean == pytest.approx(3 / 4)
    assert found[4].questions == 4
    assert found[1].mean < found[2].mean < found[4].mean


def test_one_question_has_no_interval():
    assert pass_at_k_intervals([[1.0, 0.0]])[2].mean is None


def test_all_wrong_has_an_interval_of_positive_width():
    interval = pass_at_k_intervals([[0.0] * 4] * 100)[4]
    assert interval.mean == interval.low == 0
    assert 0.01 < interval.high < 0.06
