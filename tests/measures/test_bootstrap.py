import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_prism.measures import bootstrap
from verl_prism.measures.bootstrap import paired_differences, question_weights


def drawn_marks(rng, questions: int, rate: float) -> list[list[float]]:
    """0 or 1 per response, between no and four responses to each question."""
    return [rng.binomial(1, rate, rng.integers(0, 5)).astype(float) for _ in range(questions)]


def weights_of(questions: int, resamples: int, seed: int) -> np.ndarray:
    return np.concatenate(list(question_weights(questions, resamples, seed)))


def looped(first, second, resamples: int, seed: int) -> tuple[float, float, float]:
    """The definition: repeat the responses of the drawn questions, and take both means."""
    differences = []
    for weights in [np.ones(len(first)), *weights_of(len(first), resamples, seed)]:
        means = []
        for values in (first, second):
            responses = []
            for question, times in enumerate(weights):
                responses += list(values[question]) * int(times)
            means.append(np.mean(responses) if responses else np.nan)
        differences.append(means[1] - means[0])
    low, high = np.nanquantile(differences[1:], [0.025, 0.975])
    return differences[0], low, high


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.filterwarnings("error")
def test_it_equals_a_loop_over_responses(seed):
    rng = np.random.default_rng(seed)
    first = {"a": drawn_marks(rng, 30, 0.3), "b": drawn_marks(rng, 30, 0.5), "c": []}
    second = {"b": drawn_marks(rng, 30, 0.6), "a": drawn_marks(rng, 30, 0.9)}
    found = paired_differences(first, second, 200, seed)
    assert list(found) == ["a", "b"]
    for mark, difference in found.items():
        expected = looped(first[mark], second[mark], 200, seed)
        assert (difference.difference, difference.low, difference.high) == pytest.approx(expected)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
@settings(deadline=None)
def test_each_resample_draws_as_many_questions_as_there_are(questions, resamples, seed):
    weights = weights_of(questions, resamples, seed)
    assert weights.shape == (resamples, questions)
    assert (weights.sum(axis=1) == questions).all()
    assert (weights == weights_of(questions, resamples, seed)).all()


def test_memory_does_not_grow_with_the_number_of_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "CHUNK_NUMBERS", 100)
    chunks = list(question_weights(30, 10, 0))
    assert [len(chunk) for chunk in chunks] == [3, 3, 3, 1]


def test_pairing_removes_what_the_questions_have_in_common():
    rng = np.random.default_rng(0)
    difficulty = rng.uniform(0, 100, 200)
    first = {"length": [[value] for value in difficulty]}
    second = {"length": [[value + 1 + rng.normal(0, 0.1)] for value in difficulty]}
    difference = paired_differences(first, second, 500, 0)["length"]
    assert 0.97 < difference.low < 1 < difference.high < 1.03


@pytest.mark.parametrize("effect", [0.0, 0.1])
def test_the_interval_contains_the_true_difference_in_95_percent_of_samples(effect):
    rng = np.random.default_rng(1)
    covered = []
    for seed in range(300):
        rates = rng.beta(1, 1, 80) * 0.8
        first = {"x": rng.binomial(1, rates[:, None], (80, 4))}
        second = {"x": rng.binomial(1, rates[:, None] + effect, (80, 4))}
        found = paired_differences(first, second, 300, seed)["x"]
        covered.append(found.low <= effect <= found.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.035)


def test_equal_policies_differ_by_0():
    same = {"x": [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]}
    found = paired_differences(same, same, 100, 0)["x"]
    assert (found.difference, found.low, found.high, found.questions) == (0, 0, 0, 3)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([[1.0]], [[0.0]]),  # one question
        ([], []),
        ([[], [], []], [[1.0], [1.0], [1.0]]),  # undefined for one policy
        ([[1.0], [], []], [[1.0], [1.0], [1.0]]),  # one question has values of both
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_difference_that_is_not_defined(first, second):
    found = paired_differences({"x": first}, {"x": second}, 50, 0)["x"]
    assert (found.difference, found.low, found.high) == (None, None, None)


def test_policies_without_a_common_mark():
    assert paired_differences({"x": [[1.0]] * 3}, {"y": [[1.0]] * 3}, 50, 0) == {}
