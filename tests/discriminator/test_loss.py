"""The pairwise loss and its metrics against a slow obvious oracle."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_prism.discriminator.loss import (
    GroupScores,
    gradient_penalty,
    mean_accuracy,
    pair_metrics,
    pair_sums,
    pairwise_loss,
)
from verl_prism.discriminator.settings import LossSettings

score = st.floats(-20, 20, width=32)


@st.composite
def group_scores(draw):
    groups, students = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    teacher = draw(
        st.lists(st.lists(score, min_size=groups, max_size=groups), min_size=2, max_size=2)
    )
    student = torch.tensor(
        draw(st.lists(score, min_size=2 * groups * students, max_size=2 * groups * students))
    )
    valid = torch.tensor(
        draw(st.lists(st.booleans(), min_size=groups * students, max_size=groups * students))
    )
    return GroupScores(
        torch.tensor(teacher), student.reshape(2, groups, students), valid.reshape(groups, students)
    )


@st.composite
def loss_settings(draw):
    return LossSettings(
        score_regularization=draw(st.floats(0, 0.1)),
        label_smoothing=draw(st.floats(0, 0.4)),
        margin=draw(st.floats(0, 2)),
        imitation_coef=draw(st.floats(0, 1)),
    )


def valid_pairs(scores: GroupScores):
    """(t, s) of every view and valid pair."""
    for view in range(2):
        for group, row in enumerate(scores.valid.tolist()):
            for n, valid in enumerate(row):
                if valid:
                    yield scores.teacher[view, group].item(), scores.student[view, group, n].item()


def oracle(scores: GroupScores, terms: LossSettings) -> float:
    total = 0.0
    for t, s in valid_pairs(scores):
        for share, ahead in ((1 - terms.label_smoothing, 1), (terms.label_smoothing, -1)):
            total -= share * math.log(1 / (1 + math.exp(-ahead * (t - s - terms.margin))))
        total += terms.score_regularization / 4 * (t * t + s * s)
        total -= terms.imitation_coef * t
    return total / max(int(scores.valid.sum()), 1)


@settings(deadline=None)
@given(group_scores(), loss_settings())
def test_loss_matches_the_oracle(scores, terms):
    loss = pairwise_loss(scores, int(scores.valid.sum()), terms).item()
    assert loss == pytest.approx(oracle(scores, terms), rel=1e-4, abs=1e-5)


@settings(deadline=None)
@given(group_scores())
def test_losses_of_parts_sum_to_the_loss_of_the_mini_batch(scores):
    pairs, terms = int(scores.valid.sum()), LossSettings()
    parts = [
        GroupScores(
            scores.teacher[:, g : g + 1], scores.student[:, g : g + 1], scores.valid[g : g + 1]
        )
        for g in range(len(scores.valid))
    ]
    whole = pairwise_loss(scores, pairs, terms).item()
    assert sum(pairwise_loss(part, pairs, terms).item() for part in parts) == pytest.approx(
        whole, rel=1e-4, abs=1e-5
    )


def one_pair(teacher: float, student: float) -> GroupScores:
    """The same in both views."""
    valid = torch.ones(1, 1, dtype=torch.bool)
    return GroupScores(torch.full((2, 1), teacher), torch.full((2, 1, 1), student), valid)


def test_pair_ahead_by_the_margin_costs_as_much_as_a_tie_without_margin():
    terms = LossSettings(score_regularization=0.0, margin=1.5)
    assert pairwise_loss(one_pair(2.0, 0.5), 1, terms).item() == pytest.approx(2 * math.log(2))


def test_label_smoothing_raises_the_cost_of_pairs_far_ahead():
    smoothed = LossSettings(score_regularization=0.0, label_smoothing=0.1)
    best = math.log(0.9 / 0.1)  # the distance at which the smoothed loss is lowest
    costs = [
        pairwise_loss(one_pair(ahead, 0.0), 1, smoothed).item()
        for ahead in (best - 0.5, best, best + 0.5)
    ]
    assert costs[1] < costs[0]
    assert costs[1] < costs[2]


@settings(deadline=None)
@given(group_scores(), st.floats(-1, 1))
def test_the_gradient_penalty_is_the_mean_squared_change_per_noise(scores, shift):
    moved = GroupScores(scores.teacher * (1 + shift), scores.student + shift, scores.valid)
    pairs = int(scores.valid.sum())
    changes = [(t * shift) ** 2 + shift**2 for t, _ in valid_pairs(scores)]
    expected = sum(changes) / 0.5**2 / 4 / max(pairs, 1)
    assert gradient_penalty(scores, moved, 0.5, pairs).item() == pytest.approx(
        expected, rel=1e-3, abs=1e-3
    )


def test_invalid_response_has_no_gradient():
    teacher = torch.zeros(2, 1, requires_grad=True)
    student = torch.tensor([[[1.0, math.nan]], [[2.0, math.nan]]], requires_grad=True)
    scores = GroupScores(teacher, student, torch.tensor([[True, False]]))
    pairwise_loss(scores, 1, LossSettings()).backward()
    assert teacher.grad.isfinite().all()
    assert student.grad[:, 0, 0].all()
    assert not student.grad[:, 0, 1].any()


def test_tie_is_half_accurate_with_margin_zero():
    scores = GroupScores(
        torch.tensor([[1.5], [0.5]]),
        torch.tensor([[[1.5, 1.5]], [[0.5, 0.5]]]),
        torch.ones(1, 2, dtype=torch.bool),
    )
    metrics = pair_metrics(pair_sums(scores))
    for view in ("perception", "reasoning"):
        assert metrics[f"{view}/accuracy"] == 0.5
        assert metrics[f"{view}/margin"] == 0.0
        assert metrics[f"{view}/ties"] == 1.0
    assert mean_accuracy(metrics) == 0.5


def test_metrics_without_pairs_have_no_means():
    scores = GroupScores(
        torch.zeros(2, 1), torch.zeros(2, 1, 3), torch.zeros(1, 3, dtype=torch.bool)
    )
    assert pair_metrics(pair_sums(scores)) == {"pairs": 0.0, "valid_ratio": 0.0}


@pytest.mark.parametrize(
    ("side", "where"), [("teacher", (0, 0)), ("student", (1, 0, 0)), ("student", (1, 0, 1))]
)
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_scores_of_invalid_responses_may_be_non_finite(side, where, number):
    scores = GroupScores(torch.zeros(2, 1), torch.zeros(2, 1, 2), torch.tensor([[True, False]]))
    assert scores.finite
    getattr(scores, side)[where] = number
    assert scores.finite == (where == (1, 0, 1))
