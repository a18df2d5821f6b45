"""The advantages against slow obvious oracles, their properties, and their path to the tokens."""

import random
import statistics
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, rankdata
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils

from verl_prism.alignment import groups as groups_module
from verl_prism.alignment import trainer as trainer_module
from verl_prism.alignment.advantage import (
    AlignmentAdvantage,
    alignment_advantage,
    combined_terms,
    gaussian_quantiles,
    normalize_groups,
    reference_advantage,
    small_spreads,
    spread_over_tokens,
)
from verl_prism.alignment.estimator import pass_through
from verl_prism.alignment.groups import ScoredShare
from verl_prism.alignment.trainer import AdversarialOPDTrainer, policy_advantage
from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.trainer.ppo import PrismTrainer

WEIGHTS = torch.tensor([0.5, 0.5])
PENALTY = 1.5
STD_FLOOR = 1e-3


def ours(scores: Tensor, valid: Tensor) -> AlignmentAdvantage:
    terms = WEIGHTS[:, None, None] * normalize_groups(scores, valid, STD_FLOOR)
    return alignment_advantage(terms, scores, valid, PENALTY)


def combined(scores: Tensor, valid: Tensor) -> AlignmentAdvantage:
    terms = combined_terms(scores, valid, WEIGHTS, STD_FLOOR)
    return alignment_advantage(terms, scores, valid, PENALTY)


def quantile(scores: Tensor, valid: Tensor) -> AlignmentAdvantage:
    terms = WEIGHTS[:, None, None] * gaussian_quantiles(scores, valid, STD_FLOOR, power=1.5)
    return alignment_advantage(terms, scores, valid, PENALTY)


def reference(scores: Tensor, valid: Tensor) -> AlignmentAdvantage:
    return reference_advantage(scores, valid, WEIGHTS, PENALTY)


OF_VALID = (ours, combined, quantile)  # rules that leave invalid responses out


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
        mean, std = 0.0, 1.0
        if len(filled) > 1:
            mean = statistics.fmean(filled)
            std = statistics.stdev(filled)
        for i, score in enumerate(filled):
            advantages[i] += weight * (score - mean) / (std + 1e-6)
    return advantages


# Sums and squares of quarters are exact: scores that differ, differ by more than rounding.
a_score = st.integers(-40, 40).map(lambda quarters: quarters / 4)
a_member = st.tuples(a_score, a_score, st.booleans())
a_group = st.lists(a_member, min_size=1, max_size=8)
two_groups = st.integers(1, 5).flatmap(
    lambda size: st.tuples(*[st.lists(a_member, min_size=size, max_size=size)] * 2)
)


def tensors(group) -> tuple[Tensor, Tensor]:
    """Scores[views, 1, N], NaN if invalid, and valid[1, N]."""
    valid = torch.tensor([[member[2] for member in group]])
    views = [[[member[view] for member in group]] for view in (0, 1)]
    scores = torch.tensor(views, dtype=torch.float64)
    return torch.where(valid, scores, torch.nan), valid


def all_valid(size: int) -> Tensor:
    return torch.ones(1, size, dtype=torch.bool)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 10), st.booleans()), min_size=1, max_size=8))
def test_normalization_equals_the_oracle(group):
    scores = [score for score, _ in group]
    valid = [is_valid for _, is_valid in group]
    result = normalize_groups(
        torch.tensor([scores], dtype=torch.float64), torch.tensor([valid]), 0.01
    )
    assert result[0].tolist() == pytest.approx(oracle(scores, valid, 0.01), abs=1e-6)


@settings(deadline=None)
@given(a_group)
def test_the_reference_rule_equals_the_oracle(group):
    scores, valid = tensors(group)
    views = [[member[view] for member in group] for view in (0, 1)]
    expected = reference_oracle(views, valid[0].tolist(), [0.25, 0.75])
    result = reference_advantage(scores, valid, torch.tensor([0.25, 0.75]), PENALTY)
    assert result.values[0].tolist() == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(a_group)
def test_advantages_of_valid_members_sum_to_zero(group):
    scores, valid = tensors(group)
    for rule in OF_VALID:
        values = rule(scores, valid).values
        assert values[valid].sum().item() == pytest.approx(0.0, abs=1e-5)


@settings(deadline=None)
@given(a_group, a_score, a_score)
def test_shifting_all_scores_of_a_view_changes_nothing(group, perception, reasoning):
    """For the reference rule, only in a group of two or more with a valid response."""
    scores, valid = tensors(group)
    shifted = scores + torch.tensor([perception, reasoning])[:, None, None]
    rules = [*OF_VALID]
    if valid.any() and valid.numel() > 1:
        rules.append(reference)
    for rule in rules:
        expected = rule(scores, valid).values[0].tolist()
        assert rule(shifted, valid).values[0].tolist() == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(two_groups, st.randoms())
def test_the_order_of_groups_and_members_changes_nothing(groups, chooser):
    scores = torch.cat([tensors(group)[0] for group in groups], dim=1)
    members = torch.tensor(chooser.sample(range(len(groups[0])), len(groups[0])))
    moved = scores.flip(1)[..., members]
    for rule in (*OF_VALID, reference):
        before = rule(scores, ~scores[0].isnan())
        after = rule(moved, ~moved[0].isnan())
        assert torch.allclose(after.values, before.values.flip(0)[:, members], atol=1e-6)
        assert torch.allclose(after.terms, before.terms.flip(1)[..., members], atol=1e-6)


@settings(deadline=None)
@given(a_group)
def test_the_terms_of_a_valid_response_sum_to_its_value(group):
    scores, valid = tensors(group)
    for rule in (*OF_VALID, reference):
        advantage = rule(scores, valid)
        assert advantage.values.isfinite().all()
        assert advantage.terms.isfinite().all()
        assert torch.allclose(advantage.terms.sum(0)[valid], advantage.values[valid])


def test_invalid_members_do_not_affect_valid_ones():
    scores = torch.tensor([[[1.0, 2.0, 99.0]], [[3.0, 5.0, -99.0]]])
    valid = torch.tensor([[True, True, False]])
    for rule in OF_VALID:
        without = rule(scores[..., :2], valid[:, :2]).values
        assert rule(scores, valid).values[:, :2].tolist() == without.tolist()


def test_an_invalid_response_gets_exactly_the_penalty():
    scores = torch.tensor([[[1.0, 2.0, torch.nan]], [[1.0, 2.0, torch.nan]]])
    for rule in OF_VALID:
        advantage = rule(scores, ~scores[0].isnan())
        assert advantage.values[0, 2] == -PENALTY
        assert advantage.values.isfinite().all()


def test_a_group_without_a_valid_response_has_no_gradient_and_is_counted():
    scores = torch.full((2, 2, 3), torch.nan)
    scores[:, 1] = torch.tensor([1.0, 2.0, 3.0])
    valid = ~scores[0].isnan()
    for rule in OF_VALID:
        assert rule(scores, valid).values[0].tolist() == [0.0, 0.0, 0.0]
    published = reference(scores, valid).values[0].tolist()
    assert published == [-PENALTY] * 3, "the published code penalizes it"
    for rule in (*OF_VALID, reference):
        advantage = rule(scores, valid)
        assert (advantage.groups_without_valid, advantage.groups_degenerate) == (1, 0)


@pytest.mark.parametrize("size", [1, 3, 7, 16])
def test_equal_scores_have_exactly_no_gradient_and_are_counted(size):
    """Rounding of their mean must not show either."""
    scores = torch.full((2, 1, size), 0.1)
    for rule in (*OF_VALID, reference):
        assert rule(scores, all_valid(size)).groups_degenerate == 1
    for rule in OF_VALID:
        assert rule(scores, all_valid(size)).values.abs().max() == 0


def test_a_group_that_differs_in_one_view_is_not_degenerate():
    scores = torch.tensor([[[1.0, 1.0]], [[1.0, 2.0]]])
    assert ours(scores, all_valid(2)).groups_degenerate == 0


def test_rounding_noise_is_not_amplified():
    scores = torch.tensor([[0.5, 0.5 + 1e-6, 0.5 - 1e-6]])
    assert normalize_groups(scores, all_valid(3), STD_FLOOR).abs().max() < 0.01


def test_the_weight_of_a_view_does_not_depend_on_its_spread():
    scores = torch.tensor([[[0.0, 1.0]], [[10.0, 0.0]]])
    assert ours(scores, all_valid(2)).values.abs().max() < 1e-6


@settings(deadline=None)
@given(a_group)
def test_the_combined_rule_is_the_z_score_of_the_weighted_sum(group):
    scores, valid = tensors(group)
    sums = [0.25 * member[0] + 0.75 * member[1] for member in group]
    expected = oracle(sums, valid[0].tolist(), STD_FLOOR)
    terms = combined_terms(scores, valid, torch.tensor([0.25, 0.75]), STD_FLOOR)
    assert terms.sum(0)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_in_the_combined_rule_the_view_with_the_larger_spread_counts_more():
    scores = torch.tensor([[[0.0, 1.0]], [[10.0, 0.0]]])
    values = combined(scores, all_valid(2)).values
    assert values[0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)])


@settings(deadline=None)
@given(a_group, st.sampled_from([0.5, 1.0, 2.0]))
def test_quantiles_equal_the_oracle(group, power):
    scores, valid = tensors(group)
    members = [member[0] for member in group if member[2]]
    expected = np.zeros(len(group))
    if len(set(members)) > 1:
        quantiles = norm.ppf((rankdata(members) - 0.5) / len(members))
        powers = np.sign(quantiles) * np.abs(quantiles) ** power
        expected[valid[0].numpy()] = powers - powers.mean()
    result = gaussian_quantiles(scores[:1], valid, STD_FLOOR, power)
    assert result[0, 0].numpy() == pytest.approx(expected, abs=1e-6)


def test_quantiles_ignore_distances_and_rounding_noise():
    near = torch.tensor([[1.0, 1.1, 1.2]])
    far = torch.tensor([[1.0, 7.0, 90.0]])
    quantiles = [gaussian_quantiles(each, all_valid(3), STD_FLOOR, 1.0) for each in (near, far)]
    assert quantiles[0].tolist() == quantiles[1].tolist()
    noise = torch.tensor([[0.5, 0.5 + 1e-6, 0.5 - 1e-6]])
    assert gaussian_quantiles(noise, all_valid(3), STD_FLOOR, 1.0).abs().max() == 0


def test_groups_with_a_small_spread_are_counted_per_view():
    scores = torch.tensor(
        [
            [[0.0, 10.0, torch.nan], [5.0, 5.1, 5.0], [9.0, 9.0, 9.0]],
            [[0.0, 10.0, torch.nan], [0.0, 9.0, 3.0], [1.0, torch.nan, torch.nan]],
        ]
    )
    valid = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    assert small_spreads(scores, valid, 0.15).tolist() == [0.5, 0.0]


ONE_GROUP = AlignmentAdvantage(
    torch.tensor([[0.75, -1.5]]), torch.tensor([[[0.5, 0.0]], [[0.25, 0.0]]]), 0, 0
)


def test_credit_to_the_response_gives_all_tokens_the_same():
    tokens = spread_over_tokens(ONE_GROUP, [3, 2], None)
    assert [row.tolist() for row in tokens] == [[0.75] * 3, [-1.5] * 2]


def test_credit_to_spans_gives_each_view_its_own_term():
    """Tokens between and after the blocks get the sum; an invalid response keeps the penalty."""
    tokens = spread_over_tokens(ONE_GROUP, [6, 2], [[(0, 2), (3, 5)], [(0, 0), (0, 0)]])
    assert [row.tolist() for row in tokens] == [[0.5, 0.5, 0.75, 0.25, 0.25, 0.75], [-1.5, -1.5]]


def test_accuracy_is_a_third_term_on_every_token():
    """Right answers are one spread above wrong ones."""
    rule = compose_run(["stage=align", "prism.align.accuracy_weight=2"])[1].align
    scores = torch.tensor([[[1.0, 2.0, 3.0, 9.0]], [[3.0, 2.0, 1.0, 9.0]]])
    valid = torch.tensor([[True, True, True, False]])
    accuracy = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    plain = policy_advantage(rule, scores, valid)
    mixed = policy_advantage(rule, scores, valid, accuracy)
    common = 2 * normalize_groups(accuracy, valid, rule.std_floor)
    torch.testing.assert_close(mixed.values, plain.values + common)
    assert mixed.values[0, 3] == plain.values[0, 3] == -rule.format_penalty
    ranges = [[(0, 1), (1, 2)]] * 3 + [[(0, 0), (0, 0)]]
    tokens = spread_over_tokens(mixed, [3] * 4, ranges)
    own, rest = plain.terms[:, 0, 0], common[0, 0]
    expected = torch.stack([own[0] + rest, own[1] + rest, own.sum() + rest])
    torch.testing.assert_close(tokens[0], expected)


def test_accuracy_has_no_term_in_the_published_rule():
    with pytest.raises(UserError, match="normalization=reference"):
        compose_run(
            ["stage=align", "prism.align.normalization=reference", "prism.align.accuracy_weight=1"]
        )


def test_the_estimator_passes_advantages_through_under_the_mask():
    advantages, returns = pass_through(torch.tensor([[0.5, -0.25, 9.0]]), torch.tensor([[1, 1, 0]]))
    assert advantages.tolist() == returns.tolist() == [[0.5, -0.25, 0.0]]


SPANS = {
    "perception_start": 0,
    "perception_end": 2,
    "reasoning_start": 3,
    "reasoning_end": 4,
    "fault": "",
}
INVALID = {**dict.fromkeys(SPANS, 0), "fault": "missing"}
SCORES = {
    "a_0_0": (1.0, 5.0),
    "a_1_0": (2.0, 4.0),
    "b_0_0": (7.0, 7.0),
}


@dataclass
class Store:
    """TransferQueue with two groups of two, one of them half invalid."""

    written: dict[str, list[float]] = field(default_factory=dict)

    def kv_batch_get(self, keys, partition_id, select_fields):
        infos = [INVALID if key == "b_1_0" else SPANS for key in keys]
        rows = [{"reward_extra_info": info} for info in infos]
        return tensordict_utils.get_tensordict({"extra_fields": rows})

    def kv_batch_put(self, keys, partition_id, fields):
        rows = [row.tolist() for row in fields["rm_scores"].unbind()]
        self.written = dict(zip(keys, rows, strict=True))


@dataclass
class Discriminator:
    """Two ranks, of which each scores one response of each group."""

    nonfinite: float
    world_size: int = 2

    def shares(self, groups, infos, partition, ranks):
        assert set(infos) == {key for group in groups for key in group}
        return [[group[rank] for group in groups] for rank in range(ranks)]

    def update_discriminator(self, shares):
        metrics = {"loss": 1.0, "nonfinite": self.nonfinite}
        scored = []
        for share in shares:
            scores = {key: SCORES[key] for key in share if key in SCORES}
            scored.append(ScoredShare(scores, metrics))
        return scored


def rewarded(
    monkeypatch, order: list[str], *overrides: str, nonfinite: float = 0.0
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """What the trainer writes for the rows of the store and a row of padding, and its metrics."""
    store = Store()
    monkeypatch.setattr(trainer_module, "tq", store)
    monkeypatch.setattr(groups_module, "tq", store)
    trainer = object.__new__(AdversarialOPDTrainer)
    settings = ["prism.rollout.samples_per_prompt=2", "prism.align.perception_weight=0.75"]
    trainer.prism = compose_run(["stage=align", *settings, *overrides])[1]
    trainer.discriminator_wg = trainer._planner = Discriminator(nonfinite)
    trainer.global_steps = 1
    padding = {"response_len": 1, "is_padding": True}
    tags = [padding if key == "pad" else {"response_len": 5} for key in order]
    batch = KVBatchMeta(partition_id="train", keys=order, tags=tags)
    metrics: dict[str, float] = {}
    scored = trainer._update_discriminator(batch, metrics)
    trainer._write_advantages(batch, scored, metrics)
    assert metrics["align/invalid"] == metrics["align/fault/missing"] == 0.25
    assert metrics["discriminator/loss"] == 1.0
    return store.written, metrics


ORDER = ["a_0_0", "a_1_0", "b_0_0", "b_1_0", "pad"]


@pytest.mark.parametrize("credit", ["response", "span"])
def test_the_order_of_the_rows_changes_nothing(monkeypatch, credit):
    option = f"prism.align.credit={credit}"
    expected, _ = rewarded(monkeypatch, ORDER, option)
    assert len({tuple(row) for row in expected.values()}) == 5
    for seed in range(5):
        shuffled = random.Random(seed).sample(ORDER, len(ORDER))
        assert rewarded(monkeypatch, shuffled, option)[0] == expected


def test_the_trainer_writes_the_advantage_of_each_token(monkeypatch):
    order = ["b_1_0", "pad", "a_1_0", "b_0_0", "a_0_0"]
    written, metrics = rewarded(monkeypatch, order, "prism.align.credit=span")
    higher = 0.5**0.5  # of two scores, in units of their standard deviation
    perception = 0.75 * higher
    reasoning = -0.5 * higher
    both = perception + reasoning
    assert written["a_1_0"] == pytest.approx([perception, perception, both, reasoning, both])
    assert written["b_1_0"] == [-PENALTY] * 5
    assert written["b_0_0"] == [0.0] * 5
    assert written["pad"] == [0.0]
    assert metrics["align/groups_without_valid"] == 0
    assert metrics["align/groups_degenerate"] == 0.5
    assert metrics["align/small_spread/perception"] == 0


@pytest.mark.parametrize(("normalization", "value"), [("valid", 0.0), ("reference", -PENALTY)])
def test_scores_of_a_nonfinite_step_are_not_used(monkeypatch, normalization, value):
    option = f"prism.align.normalization={normalization}"
    written, metrics = rewarded(monkeypatch, ORDER, option, nonfinite=1.0)
    for key in (*SCORES, "b_1_0"):
        assert written[key] == [value] * 5
    assert written["pad"] == [0.0]
    assert not any(name.startswith(("align/adv", "align/groups")) for name in metrics)


@pytest.mark.parametrize("nonfinite", [0.0, 1.0])
def test_the_policy_is_not_updated_after_a_nonfinite_step(monkeypatch, nonfinite):
    updated = []

    def update(self, batch, metrics):
        updated.append(batch)
        return batch

    monkeypatch.setattr(PPOTrainerSync, "_update_actor", update)
    batch = KVBatchMeta(partition_id="train", keys=["a_0_0"], tags=[{}])
    trainer = object.__new__(AdversarialOPDTrainer)
    assert trainer._update_actor(batch, {"discriminator/nonfinite": nonfinite}) is batch
    assert len(updated) == 1 - nonfinite


def test_sums_of_advantages_over_tokens_are_not_reported(monkeypatch):
    def report(self, batch, metrics, timing_raw, global_steps, epoch):
        metrics["critic/score/mean"] = 31.0
        metrics["critic/rewards/max"] = 31.0
        metrics["critic/advantages/mean"] = 0.1

    monkeypatch.setattr(PrismTrainer, "_compute_metrics", report)
    metrics: dict[str, float] = {}
    trainer = object.__new__(AdversarialOPDTrainer)
    trainer._compute_metrics(None, metrics, {}, global_steps=1, epoch=0)
    assert metrics == {"critic/advantages/mean": 0.1}


@pytest.mark.parametrize(
    ("every", "expected"), [("null", []), ("1", [2, 3, 4, 5, 6, 7]), ("3", [4, 7])]
)
def test_the_discriminator_restarts_after_every_n_steps(every, expected):
    trainer = object.__new__(AdversarialOPDTrainer)
    setting = f"prism.discriminator.restart_every={every}"
    trainer.prism = compose_run(["stage=align", setting])[1]
    restarts = []
    for step in range(1, 8):
        trainer.global_steps = step
        if trainer._discriminator_restarts:
            restarts.append(step)
    assert restarts == expected
