"""The advantages against slow obvious oracles, their properties, and their way onto the tokens."""

import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils

from verl_prism.alignment import trainer as trainer_module
from verl_prism.alignment.advantage import (
    AlignmentAdvantage,
    alignment_advantage,
    group_normalise,
    reference_advantage,
    spread_over_tokens,
)
from verl_prism.alignment.estimator import pass_through
from verl_prism.alignment.trainer import AdversarialOPDTrainer
from verl_prism.alignment.worker import SCORE_FIELDS
from verl_prism.compose import compose_run

WEIGHTS = torch.tensor([0.5, 0.5])
PENALTY = 1.5


def oracle(scores: list[float], valid: list[bool], floor: float) -> list[float]:
    members = [s for s, v in zip(scores, valid, strict=True) if v]
    mean = statistics.fmean(members) if members else 0.0
    std = statistics.stdev(members) if len(members) > 1 else 0.0
    return [(s - mean) / max(std, floor) if v else 0.0 for s, v in zip(scores, valid, strict=True)]


def reference_oracle(
    views: list[list[float]], valid: list[bool], weights: list[float]
) -> list[float]:
    """The published rule for one group, a number at a time."""
    advantages = [0.0 if v else -PENALTY for v in valid]
    for scores, weight in zip(views, weights, strict=True):
        members = [s for s, v in zip(scores, valid, strict=True) if v]
        substitute = min(members) - 1 if members else -1.0
        filled = [s if v else substitute for s, v in zip(scores, valid, strict=True)]
        mean, std = (
            (statistics.fmean(filled), statistics.stdev(filled)) if len(filled) > 1 else (0.0, 1.0)
        )
        for i, score in enumerate(filled):
            advantages[i] += weight * (score - mean) / (std + 1e-6)
    return advantages


# Quarters, whose sums and squares are exact: where scores differ they differ by more than rounding.
a_score = st.integers(-40, 40).map(lambda quarters: quarters / 4)
a_member = st.tuples(a_score, a_score, st.booleans())
a_group = st.lists(a_member, min_size=1, max_size=8)
two_groups = st.integers(1, 5).flatmap(
    lambda size: st.tuples(*[st.lists(a_member, min_size=size, max_size=size)] * 2)
)


def tensors(group) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores[views, 1, N] with NaN where invalid, and valid[1, N]."""
    valid = torch.tensor([[member[2] for member in group]])
    scores = torch.tensor(
        [[[member[view] for member in group]] for view in (0, 1)], dtype=torch.float64
    )
    return torch.where(valid, scores, torch.nan), valid


def both_rules(scores: torch.Tensor, valid: torch.Tensor) -> list[AlignmentAdvantage]:
    return [
        alignment_advantage(scores, valid, WEIGHTS, PENALTY, 1e-3),
        reference_advantage(scores, valid, WEIGHTS, PENALTY),
    ]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10), st.booleans()), min_size=1, max_size=8))
def test_normalisation_is_the_oracles(group):
    scores, valid = map(list, zip(*group, strict=True))
    result = group_normalise(
        torch.tensor([scores], dtype=torch.float64), torch.tensor([valid]), 0.01
    )
    assert result[0].tolist() == pytest.approx(oracle(scores, valid, 0.01), abs=1e-6)


@settings(deadline=None)
@given(a_group)
def test_the_references_rule_is_the_oracles(group):
    scores, valid = tensors(group)
    views = [[member[view] for member in group] for view in (0, 1)]
    expected = reference_oracle(views, valid[0].tolist(), [0.25, 0.75])
    result = reference_advantage(scores, valid, torch.tensor([0.25, 0.75]), PENALTY)
    assert result.values[0].tolist() == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(a_group)
def test_advantages_of_valid_members_sum_to_zero(group):
    scores, valid = tensors(group)
    values = alignment_advantage(scores, valid, WEIGHTS, PENALTY, 1e-3).values
    assert values[valid].sum().item() == pytest.approx(0.0, abs=1e-6)


@settings(deadline=None)
@given(a_group, a_score, a_score)
def test_shifting_all_scores_of_a_view_changes_nothing(group, perception, reasoning):
    """With the reference's rule: where some response is valid and there is something to compare it with."""
    scores, valid = tensors(group)
    shifted = scores + torch.tensor([perception, reasoning])[:, None, None]
    rules = slice(2 if valid.any() and valid.numel() > 1 else 1)
    for before, after in zip(
        both_rules(scores, valid)[rules], both_rules(shifted, valid)[rules], strict=True
    ):
        assert after.values[0].tolist() == pytest.approx(before.values[0].tolist(), abs=1e-6)


@settings(deadline=None)
@given(two_groups, st.randoms())
def test_the_order_of_groups_and_members_changes_nothing(groups, chooser):
    scores = torch.cat([tensors(group)[0] for group in groups], dim=1)
    members = torch.tensor(chooser.sample(range(len(groups[0])), len(groups[0])))
    moved = scores.flip(1)[..., members]
    for before, after in zip(
        both_rules(scores, ~scores[0].isnan()), both_rules(moved, ~moved[0].isnan()), strict=True
    ):
        assert torch.allclose(after.values, before.values.flip(0)[:, members], atol=1e-6)
        assert torch.allclose(after.terms, before.terms.flip(1)[..., members], atol=1e-6)


@settings(deadline=None)
@given(a_group)
def test_the_terms_of_a_valid_response_sum_to_its_value(group):
    scores, valid = tensors(group)
    for advantage in both_rules(scores, valid):
        assert advantage.values.isfinite().all() and advantage.terms.isfinite().all()
        assert torch.allclose(advantage.terms.sum(0)[valid], advantage.values[valid])


def test_valid_members_do_not_see_the_invalid_ones():
    scores = torch.tensor([[[1.0, 2.0, 99.0]], [[3.0, 5.0, -99.0]]])
    valid = torch.tensor([[True, True, False]])
    without = alignment_advantage(scores[..., :2], valid[:, :2], WEIGHTS, PENALTY, 1e-3).values
    assert (
        alignment_advantage(scores, valid, WEIGHTS, PENALTY, 1e-3).values[:, :2].tolist()
        == without.tolist()
    )


def test_an_invalid_response_gets_the_penalty_and_nothing_else():
    scores = torch.tensor([[[1.0, 2.0, torch.nan]], [[1.0, 2.0, torch.nan]]])
    advantage = alignment_advantage(scores, ~scores[0].isnan(), WEIGHTS, PENALTY, 1e-3)
    assert advantage.values[0, 2] == -PENALTY and advantage.values.isfinite().all()


def test_a_group_without_a_valid_response_has_no_gradient_and_is_counted():
    scores = torch.full((2, 2, 3), torch.nan)
    scores[:, 1] = torch.tensor([1.0, 2.0, 3.0])
    ours, references = both_rules(scores, ~scores[0].isnan())
    assert ours.values[0].tolist() == [0.0, 0.0, 0.0]
    assert references.values[0].tolist() == [-PENALTY] * 3  # what the published code does with it
    for advantage in (ours, references):
        assert (advantage.groups_without_valid, advantage.groups_degenerate) == (1, 0)


@pytest.mark.parametrize("size", [1, 3, 7, 16])
def test_equal_scores_have_no_gradient_at_all_and_are_counted(size):
    """Not even that of the rounding of their mean."""
    scores = torch.full((2, 1, size), 0.1)
    for advantage in both_rules(scores, torch.ones(1, size, dtype=torch.bool)):
        assert advantage.groups_degenerate == 1
    assert (
        alignment_advantage(scores, torch.ones(1, size, dtype=torch.bool), WEIGHTS, 1.5, 1e-3)
        .values.abs()
        .max()
        == 0
    )


def test_a_group_that_differs_in_one_view_is_not_degenerate():
    scores = torch.tensor([[[1.0, 1.0]], [[1.0, 2.0]]])
    assert (
        alignment_advantage(
            scores, torch.ones(1, 2, dtype=torch.bool), WEIGHTS, PENALTY, 1e-3
        ).groups_degenerate
        == 0
    )


def test_rounding_noise_is_not_blown_up():
    scores = torch.tensor([[0.5, 0.5 + 1e-6, 0.5 - 1e-6]])
    assert group_normalise(scores, torch.ones(1, 3, dtype=torch.bool), 1e-3).abs().max() < 0.01


def test_views_weigh_the_same_whatever_their_spread():
    scores = torch.tensor([[[0.0, 1.0]], [[10.0, 0.0]]])
    advantage = alignment_advantage(
        scores, torch.ones(1, 2, dtype=torch.bool), WEIGHTS, PENALTY, 1e-3
    )
    assert advantage.values.abs().max() < 1e-6


ONE_GROUP = AlignmentAdvantage(
    torch.tensor([[0.75, -1.5]]), torch.tensor([[[0.5, 0.0]], [[0.25, 0.0]]]), 0, 0
)


def test_credit_to_the_response_gives_all_tokens_the_same():
    assert [tokens.tolist() for tokens in spread_over_tokens(ONE_GROUP, [3, 2], None)] == [
        [0.75] * 3,
        [-1.5] * 2,
    ]


def test_credit_to_spans_gives_each_view_its_own_term():
    """Between the blocks and behind them stands the sum; an invalid response has the penalty throughout."""
    tokens = spread_over_tokens(ONE_GROUP, [6, 2], [[(0, 2), (3, 5)], [(0, 0), (0, 0)]])
    assert [row.tolist() for row in tokens] == [[0.5, 0.5, 0.75, 0.25, 0.25, 0.75], [-1.5, -1.5]]


def test_the_estimator_passes_advantages_through_under_the_mask():
    advantages, returns = pass_through(torch.tensor([[0.5, -0.25, 9.0]]), torch.tensor([[1, 1, 0]]))
    assert advantages.tolist() == returns.tolist() == [[0.5, -0.25, 0.0]]


class Store:
    """Rows by key, as verl's replay store keeps them, and a discriminator that has scored them."""

    def __init__(self, rows: dict[str, dict]):
        self.rows = rows
        self.extra_info = {"metrics": [{"loss": 1.0, "nonfinite": 0.0}]}

    def update_discriminator(self, rollouts: KVBatchMeta) -> "Store":
        return self

    def kv_batch_get(self, keys, partition_id, select_fields):
        return tensordict_utils.get_tensordict(
            {
                field: values if field == "extra_fields" else torch.tensor(values)
                for field in select_fields
                for values in [[self.rows[key][field] for key in keys]]
            }
        )

    def kv_batch_put(self, keys, partition_id, fields):
        self.written = dict(
            zip(keys, (row.tolist() for row in fields["rm_scores"].unbind()), strict=True)
        )


def rewarded(monkeypatch, order: list[str], credit: str) -> dict[str, list[float]]:
    """What the trainer writes for two groups of two, one of them half invalid, and a row of padding."""
    spans = {
        "perception_start": 0,
        "perception_end": 2,
        "reasoning_start": 3,
        "reasoning_end": 4,
        "fault": "",
    }
    none = {**dict.fromkeys(spans, 0), "fault": "missing"}
    scores = {
        "a_0_0": (1.0, 5.0),
        "a_1_0": (2.0, 4.0),
        "b_0_0": (7.0, 7.0),
        "b_1_0": (torch.nan, torch.nan),
    }
    infos = {key: {"reward_extra_info": none if key == "b_1_0" else spans} for key in scores}
    store = Store(
        {
            key: {"extra_fields": infos[key], **dict(zip(SCORE_FIELDS, scores[key], strict=True))}
            for key in scores
        }
    )
    monkeypatch.setattr(trainer_module, "tq", store)
    trainer = object.__new__(AdversarialOPDTrainer)
    settings = ["prism.rollout.samples_per_prompt=2", "prism.align.perception_weight=0.75"]
    trainer.prism = compose_run(["stage=align", *settings, f"prism.align.credit={credit}"])[1]
    trainer.discriminator_wg = store
    tags = [
        {"response_len": 1, "is_padding": True} if key == "pad" else {"response_len": 5}
        for key in order
    ]
    batch, metrics = KVBatchMeta(partition_id="train", keys=order, tags=tags), {}
    trainer._reward(batch, trainer._update_discriminator(batch, metrics), metrics)
    assert (
        metrics["align/invalid"] == metrics["align/fault/missing"] == 0.25
        and metrics["discriminator/loss"] == 1.0
    )
    return store.written


@pytest.mark.parametrize("credit", ["response", "span"])
def test_the_order_of_the_rows_changes_nothing(monkeypatch, credit):
    order = ["a_0_0", "a_1_0", "b_0_0", "b_1_0", "pad"]
    expected = rewarded(monkeypatch, order, credit)
    assert len({tuple(row) for row in expected.values()}) == 5
    for seed in range(5):
        shuffled = random.Random(seed).sample(order, len(order))
        assert rewarded(monkeypatch, shuffled, credit) == expected


def test_the_trainer_writes_the_advantage_of_each_token(monkeypatch):
    written = rewarded(monkeypatch, ["b_1_0", "pad", "a_1_0", "b_0_0", "a_0_0"], "span")
    higher = 0.5**0.5  # of two scores, in units of their standard deviation
    perception, reasoning = 0.75 * higher, -0.5 * higher
    both = perception + reasoning
    assert written["a_1_0"] == pytest.approx([perception, perception, both, reasoning, both])
    assert (
        written["b_1_0"] == [-PENALTY] * 5
        and written["b_0_0"] == [0.0] * 5
        and written["pad"] == [0.0]
    )


@pytest.mark.parametrize("nonfinite", [0.0, 1.0])
def test_the_policy_stays_as_it_is_where_the_scores_are_not_finite(monkeypatch, nonfinite):
    updated = []
    monkeypatch.setattr(
        PPOTrainerSync, "_update_actor", lambda self, batch, metrics: updated.append(batch) or batch
    )
    batch = KVBatchMeta(partition_id="train", keys=["a_0_0"], tags=[{}])
    trainer = object.__new__(AdversarialOPDTrainer)
    assert trainer._update_actor(batch, {"discriminator/nonfinite": nonfinite}) is batch
    assert len(updated) == 1 - nonfinite


def test_sums_of_advantages_over_tokens_are_not_reported(monkeypatch):
    def report(self, batch, metrics, timing_raw, global_steps, epoch):
        metrics |= {
            "critic/score/mean": 31.0,
            "critic/rewards/max": 31.0,
            "critic/advantages/mean": 0.1,
        }

    monkeypatch.setattr(PPOTrainerSync, "_compute_metrics", report)
    metrics: dict[str, float] = {}
    object.__new__(AdversarialOPDTrainer)._compute_metrics(
        None, metrics, {}, global_steps=1, epoch=0
    )
    assert metrics == {"critic/advantages/mean": 0.1}
