import random

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from verl_prism.measures.probe import difference_features, probe_accuracy, shuffled

NOUNS = ["cup", "cat", "tree", "car", "book", "lamp", "dog", "door"]


def text(rng: random.Random) -> str:
    return f"A {rng.choice(NOUNS)} and a {rng.choice(NOUNS)}, left of {rng.randrange(10)}."


def probe(pairs, samples: int = 1, seed: int = 0):
    features = difference_features(pairs)
    questions = np.repeat(np.arange(len(pairs) // samples), samples)
    accuracy = probe_accuracy(features, questions, seed)
    return accuracy, probe_accuracy(shuffled(features, questions, seed), questions, seed)


def contains_half(interval) -> bool:
    return interval.low <= 0.5 <= interval.high


def test_features_are_those_of_the_first_text_minus_those_of_the_second():
    pairs = [("a b", "c"), ("a b", "a b"), ("c", "a b")] * 200  # several chunks
    features = difference_features(pairs)
    assert features.shape[0] == 600
    assert features[1].nnz == 0
    assert (features[0] + features[2]).nnz == 0
    assert sorted(features[599 - 2].data) == pytest.approx([-np.log(2), *[np.log(2)] * 3])
    assert difference_features([]).shape[0] == 0


def test_identical_texts_are_at_exactly_one_half():
    rng = random.Random(0)
    texts = [text(rng) for _ in range(200)]
    accuracy, control = probe([(each, each) for each in texts])
    assert accuracy.mean == control.mean == 0.5
    assert contains_half(accuracy)


def test_another_style_is_found():
    rng = random.Random(0)
    pairs = [(text(rng), text(rng).replace("left of", "near")) for _ in range(400)]
    accuracy, control = probe(pairs, samples=2)
    assert accuracy.mean > 0.97
    assert (accuracy.questions, accuracy.responses) == (100, 200)
    assert contains_half(control)


def test_a_style_in_a_third_of_the_texts_is_found_there_only():
    rng = random.Random(1)
    pairs = []
    for _ in range(1000):
        own = text(rng)
        pairs.append((own, own.replace("left of", "near") if rng.random() < 1 / 3 else own))
    accuracy, _ = probe(pairs)
    assert accuracy.mean == pytest.approx(1 / 3 + (2 / 3) / 2, abs=0.03)


def test_wrong_sums_are_found_but_wrong_digits_are_not():
    """What the module says about errors. A digit that is wrong here is right for another image."""
    rng = random.Random(2)
    sums, digits = [], []
    for _ in range(2000):
        a, b = rng.randrange(5), rng.randrange(5)
        sums.append((f"{a} + {b} = {a + b}", f"{a} + {b} = {a + b + 1}"))
        wrong = rng.choice([digit for digit in range(5) if digit != a])
        digits.append((f"Left a {a}, right a {b}.", f"Left a {wrong}, right a {b}."))
    assert probe(sums)[0].mean > 0.95
    assert contains_half(probe(digits)[0])


@pytest.mark.parametrize("control", ["same distribution", "shuffled"])
def test_without_a_difference_the_interval_contains_one_half_in_95_percent_of_seeds(control):
    covered, means = [], []
    for seed in range(30):
        rng = random.Random(seed)
        style = "near" if control == "shuffled" else "left of"
        pairs = [(text(rng), text(rng).replace("left of", style)) for _ in range(200)]
        accuracy = probe(pairs, 2, seed)[control == "shuffled"]
        covered.append(contains_half(accuracy))
        means.append(accuracy.mean)
    assert np.mean(covered) >= 0.86
    assert np.mean(means) == pytest.approx(0.5, abs=0.025)


def test_questions_do_not_leak_from_training_to_test():
    """Every question has a mark of its own in the policy's texts, which only helps if it leaks."""
    rng = random.Random(3)
    pairs = []
    for question in range(150):
        mark = "".join(rng.choice("bcdfgh") for _ in range(12))
        texts = [f"{mark} {question}", f"{mark[::-1]} {question}"]
        rng.shuffle(texts)
        pairs += [tuple(texts)] * 4
    accuracy, _ = probe(pairs, samples=4)
    assert accuracy.mean == 0.5  # ties: no feature is known


def test_it_depends_on_the_seed_only():
    rng = random.Random(4)
    pairs = [(text(rng), text(rng)) for _ in range(100)]
    assert probe(pairs, seed=1) == probe(pairs, seed=1)
    assert probe(pairs, seed=1) != probe(pairs, seed=2)


@pytest.mark.parametrize("questions", [0, 1, 3])
def test_too_few_questions(questions):
    features = csr_matrix((questions, 2**18), dtype=np.float32)
    assert probe_accuracy(features, range(questions), 0).mean is None


def test_four_questions_are_enough():
    accuracy, _ = probe([("a", "b")] * 4)
    assert (accuracy.mean, accuracy.questions) == (1, 2)
