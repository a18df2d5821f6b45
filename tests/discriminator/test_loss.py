"""The pairwise loss and its metrics against a slow obvious oracle."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_prism.discriminator.loss import GroupScores, LossWeights, pair_metrics, pair_sums, pairwise_loss

score = st.floats(-20, 20, width=32)


@st.composite
def group_scores(draw):
    groups, students = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    teacher = draw(st.lists(st.lists(score, min_size=groups, max_size=groups), min_size=2, max_size=2))
    student = torch.tensor(draw(st.lists(score, min_size=2 * groups * students, max_size=2 * groups * students)))
    invalid = torch.tensor(draw(st.lists(st.booleans(), min_size=groups * students, max_size=groups * students)))
    student = student.reshape(2, groups, students)
    student[:, invalid.reshape(groups, students)] = math.nan
    return GroupScores(torch.tensor(teacher), student)


def oracle(scores: GroupScores, coefficient: float) -> float:
    total, pairs = 0.0, int(scores.valid.sum())
    for view in range(2):
        for group, row in enumerate(scores.valid.tolist()):
            for n, valid in enumerate(row):
                if valid:
                    t, s = scores.teacher[view, group].item(), scores.student[view, group, n].item()
                    total += math.log1p(math.exp(s - t)) + coefficient / 4 * (t * t + s * s)
    return total / max(pairs, 1)


@settings(deadline=None)
@given(group_scores())
def test_loss_is_the_oracles(scores):
    loss = pairwise_loss(scores, int(scores.valid.sum()), LossWeights(0.01)).item()
    assert loss == pytest.approx(oracle(scores, 0.01), rel=1e-4, abs=1e-5)


@settings(deadline=None)
@given(group_scores())
def test_split_into_micro_batches_the_loss_is_the_same(scores):
    pairs, weights = int(scores.valid.sum()), LossWeights(0.01)
    parts = [GroupScores(scores.teacher[:, g : g + 1], scores.student[:, g : g + 1]) for g in range(len(scores.valid))]
    whole = pairwise_loss(scores, pairs, weights).item()
    assert sum(pairwise_loss(part, pairs, weights).item() for part in parts) == pytest.approx(whole, rel=1e-4, abs=1e-5)


def test_an_invalid_response_has_no_gradient():
    teacher = torch.zeros(2, 1, requires_grad=True)
    rows = torch.tensor([[[1.0, math.nan]], [[2.0, math.nan]]])
    pairwise_loss(GroupScores(teacher, rows), 1, LossWeights()).backward()
    assert teacher.grad.isfinite().all()


def test_identical_texts_are_half_accurate_with_margin_zero():
    scores = GroupScores(torch.tensor([[1.5], [0.5]]), torch.tensor([[[1.5, 1.5]], [[0.5, 0.5]]]))
    metrics = pair_metrics(pair_sums(scores))
    for view in ("perception", "reasoning"):
        assert metrics[f"{view}/accuracy"] == 0.5
        assert metrics[f"{view}/margin"] == 0.0
        assert metrics[f"{view}/ties"] == 1.0


def test_without_pairs_means_are_absent():
    metrics = pair_metrics(pair_sums(GroupScores(torch.zeros(2, 1), torch.full((2, 1, 3), math.nan))))
    assert metrics == {"pairs": 0.0, "valid_ratio": 0.0}
