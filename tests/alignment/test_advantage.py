"""The advantage against a slow obvious oracle, and its properties."""

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_prism.alignment.advantage import alignment_advantage, group_normalise

WEIGHTS = torch.tensor([0.5, 0.5])


def oracle(scores: list[float], valid: list[bool], floor: float) -> list[float]:
    members = [s for s, v in zip(scores, valid, strict=True) if v]
    mean = statistics.fmean(members) if members else 0.0
    std = statistics.stdev(members) if len(members) > 1 else 0.0
    return [(s - mean) / max(std, floor) if v else 0.0 for s, v in zip(scores, valid, strict=True)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10), st.booleans()), min_size=1, max_size=8))
def test_normalisation_is_the_oracles(group):
    scores, valid = map(list, zip(*group, strict=True))
    result = group_normalise(torch.tensor([scores], dtype=torch.float64), torch.tensor([valid]), 0.01)
    assert result[0].tolist() == pytest.approx(oracle(scores, valid, 0.01), abs=1e-6)


def test_valid_members_do_not_see_the_invalid_ones():
    scores = torch.tensor([[[1.0, 2.0, 99.0]], [[3.0, 5.0, -99.0]]])
    valid = torch.tensor([[True, True, False]])
    without = alignment_advantage(scores[..., :2], valid[:, :2], WEIGHTS, 1.5, 1e-3).values
    assert alignment_advantage(scores, valid, WEIGHTS, 1.5, 1e-3).values[:, :2].tolist() == without.tolist()


def test_an_invalid_response_gets_the_penalty_and_nothing_else():
    scores = torch.tensor([[[1.0, 2.0, torch.nan]], [[1.0, 2.0, torch.nan]]])
    advantage = alignment_advantage(scores, ~scores[0].isnan(), WEIGHTS, 1.5, 1e-3)
    assert advantage.values[0, 2] == -1.5 and advantage.values.isfinite().all()


def test_a_group_without_a_valid_response_has_no_gradient_and_is_counted():
    scores = torch.full((2, 2, 3), torch.nan)
    scores[:, 1] = torch.tensor([1.0, 2.0, 3.0])
    advantage = alignment_advantage(scores, ~scores[0].isnan(), WEIGHTS, 1.5, 1e-3)
    assert advantage.values[0].tolist() == [0.0, 0.0, 0.0]
    assert (advantage.groups_without_valid, advantage.groups_degenerate) == (1, 0)


def test_equal_scores_have_no_gradient_and_are_counted():
    scores = torch.full((2, 1, 4), 0.7)
    advantage = alignment_advantage(scores, torch.ones(1, 4, dtype=torch.bool), WEIGHTS, 1.5, 1e-3)
    assert advantage.values.abs().max() == 0 and advantage.groups_degenerate == 1


def test_rounding_noise_is_not_blown_up():
    scores = torch.tensor([[0.5, 0.5 + 1e-6, 0.5 - 1e-6]])
    assert group_normalise(scores, torch.ones(1, 3, dtype=torch.bool), 1e-3).abs().max() < 0.01


def test_views_weigh_the_same_whatever_their_spread():
    scores = torch.tensor([[[0.0, 1.0]], [[10.0, 0.0]]])
    advantage = alignment_advantage(scores, torch.ones(1, 2, dtype=torch.bool), WEIGHTS, 1.5, 1e-3)
    assert advantage.values.abs().max() < 1e-6
