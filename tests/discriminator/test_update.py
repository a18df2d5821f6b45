"""Scores and gradients do not depend on how groups are split and ordered."""

import math
import random
from dataclasses import replace

import pytest
import torch

from verl_prism.discriminator.batch import (
    PROMPT,
    Group,
    GroupEncoder,
    group_sizes,
    valid_pairs,
)
from verl_prism.discriminator.loss import pair_metrics, pair_sums, pairwise_loss
from verl_prism.discriminator.model import load_discriminator
from verl_prism.discriminator.plan import Part
from verl_prism.discriminator.ranks import Ranks
from verl_prism.discriminator.settings import LossSettings
from verl_prism.discriminator.spans import VIEWS, tokenize_spans
from verl_prism.discriminator.upcycling import upcycle
from verl_prism.discriminator.update import (
    NOISE,
    MiniBatch,
    Totals,
    backward_groups,
    expert_choices,
    score_groups,
)
from verl_prism.response import parse_response

PAIRS_ONLY = LossSettings(balance_coef=0.0)  # the load-balancing loss depends on the micro-batches
RANKS = Ranks()


def response(caption: str, think: str, answer: str) -> str:
    return f"<caption>{caption}</caption><think>{think}</think><answer>{answer}</answer>"


STUDENTS = [
    response("A 1 and a 2.", "1 + 2 = 3.", "3"),
    response("A 7 and a 7.", "The sum is 5.", "5"),
    response("Two digits.", "First I look at the left one, then at the right one; 4 + 5 = 9.", "9"),
    response("A 7 and a 7.", "7 + 7 = 14.", "14"),
]


@pytest.fixture
def discriminator(discriminator):
    """With experts that differ: between equal ones the routers' gradients are rounding noise."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in discriminator.named_parameters():
            if "experts" in name:
                parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return discriminator


@pytest.fixture
def spans(tokenizer):
    return lambda text: tokenize_spans(parse_response(text), tokenizer)


@pytest.fixture
def groups(prompts, rows, spans):
    """Eight groups of four students, of which one or two are invalid."""
    return [
        Group(
            prompt,
            spans(row["teacher_response"]),
            [
                spans(STUDENTS[g % 4]),
                None,
                spans(STUDENTS[(g + 1) % 4]),
                spans(STUDENTS[2]) if g % 3 else None,
            ],
        )
        for g, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
    ]


@pytest.fixture
def encoder(discriminator):
    return GroupEncoder(discriminator.config)


def gradients(model, batch: MiniBatch, settings=PAIRS_ONLY, totals=None):
    """Loss, scores and the gradient of every parameter that has one."""
    model.zero_grad()
    done = backward_groups(model, batch, settings, RANKS, totals)
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return done.loss, done.scores, grads


def assert_same(result, expected):
    """Within 1e-5, relative to the largest number of each tensor."""
    assert result[0] == pytest.approx(expected[0], rel=1e-5)
    assert result[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        worst = (result[2][name] - gradient).abs().max()
        assert worst <= 1e-5 * gradient.abs().max(), name


def test_identical_text_of_teacher_and_student_scores_exactly_the_same(
    discriminator, encoder, prompts, rows, spans
):
    teachers = [spans(row["teacher_response"]) for row in rows]
    groups = [
        Group(prompt, teacher, [teacher]) for prompt, teacher in zip(prompts, teachers, strict=True)
    ]
    scores = score_groups(discriminator, MiniBatch(encoder, groups, 100_000), RANKS)
    metrics = pair_metrics(pair_sums(scores))
    for view in VIEWS:
        assert metrics[f"{view}/accuracy"] == 0.5
        assert metrics[f"{view}/margin"] == 0.0


def test_score_does_not_depend_on_the_rest_of_the_pack(discriminator, encoder, groups):
    together = score_groups(discriminator, MiniBatch(encoder, groups, 100_000), RANKS)
    for g, group in enumerate(groups):
        alone = score_groups(discriminator, MiniBatch(encoder, [group], 100_000), RANKS)
        valid = together.valid[g]
        torch.testing.assert_close(
            alone.student[:, 0, valid], together.student[:, g, valid], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            alone.teacher[:, 0], together.teacher[:, g], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("max_tokens", [1, 100_000])
def test_scores_of_an_update_equal_those_of_a_scoring_pass(
    discriminator, encoder, groups, max_tokens
):
    batch = MiniBatch(encoder, groups, max_tokens)
    scored = score_groups(discriminator.eval(), batch, RANKS)
    updated = backward_groups(discriminator.train(), batch, LossSettings(), RANKS).scores
    for ours, theirs in ((updated.student, scored.student), (updated.teacher, scored.teacher)):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def budget(groups, per_batch: int) -> int:
    """Tokens that hold any `per_batch` of the groups, and no more of the longest ones."""
    sizes = [group_sizes(group) for group in groups]
    return per_batch * math.ceil(max(each.size(range(len(each.students))) for each in sizes))


@pytest.mark.parametrize("per_batch", [1, 2, 4])
def test_micro_batches_give_the_loss_and_gradients_of_the_whole(
    discriminator, encoder, groups, per_batch
):
    whole, parts = (
        MiniBatch(encoder, groups, 100_000),
        MiniBatch(encoder, groups, budget(groups, per_batch)),
    )
    assert len(whole) == 1
    assert len(parts) == len(groups) / per_batch
    assert_same(gradients(discriminator, parts), gradients(discriminator, whole))


@pytest.mark.parametrize("share", [0, 0.6])
def test_splitting_a_group_over_the_budget_changes_nothing(discriminator, encoder, groups, share):
    whole = MiniBatch(encoder, groups, 100_000)
    parts = MiniBatch(encoder, groups, max(1, int(share * budget(groups, 1))))
    assert len(parts) > len(groups)
    ours, expected = gradients(discriminator, parts), gradients(discriminator, whole)
    assert_same(ours, expected)
    assert ours[1].valid.equal(expected[1].valid)
    valid = expected[1].valid
    torch.testing.assert_close(
        ours[1].student[:, valid], expected[1].student[:, valid], atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(ours[1].teacher, expected[1].teacher, atol=1e-5, rtol=1e-4)


def test_placeholders_add_nothing(discriminator, encoder, groups):
    batch = MiniBatch(encoder, groups[:2], 1)
    settings = LossSettings(balance_coef=1.0)
    alone = gradients(discriminator, batch, settings)
    more = Totals(batch.pairs, len(batch), len(batch) + 2)
    assert_same(gradients(discriminator, batch, settings, more), alone)


def test_rank_without_groups_only_runs_placeholders(discriminator, encoder):
    batch = MiniBatch(encoder, [], 1)
    loss, scores, grads = gradients(
        discriminator, batch, LossSettings(balance_coef=1.0), Totals(7, 3, 2)
    )
    assert loss == 0.0
    assert scores.valid.shape == (0, 0)
    assert not any(gradient.any() for gradient in grads.values())


def test_planned_packs_give_each_student_its_own_score(discriminator, encoder, groups):
    whole = score_groups(discriminator, MiniBatch(encoder, groups[:2], 100_000), RANKS)
    plan = ((Part(1, (3, 0)), Part(0, (1, 2))), (Part(0, (3, 0)), Part(1, (1, 2))))
    batch = MiniBatch(encoder, groups[:2], 1, plan)
    assert len(batch) == 2
    planned = score_groups(discriminator, batch, RANKS)
    assert planned.valid.equal(whole.valid)
    torch.testing.assert_close(
        planned.student[:, whole.valid], whole.student[:, whole.valid], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("seed", range(3))
def test_order_of_groups_and_students_changes_nothing(discriminator, encoder, groups, seed):
    shuffler = random.Random(seed)
    shuffled = [
        replace(group, students=shuffler.sample(group.students, len(group.students)))
        for group in shuffler.sample(groups, len(groups))
    ]
    expected = gradients(discriminator, MiniBatch(encoder, groups, 100_000))
    assert_same(gradients(discriminator, MiniBatch(encoder, shuffled, budget(groups, 2))), expected)


def test_loss_is_the_loss_of_the_returned_scores(discriminator, encoder, groups):
    loss, scores, _ = gradients(discriminator, MiniBatch(encoder, groups, 300))
    assert loss == pytest.approx(
        pairwise_loss(scores, valid_pairs(groups), PAIRS_ONLY).item(), rel=1e-5
    )


def test_balance_loss_is_the_mean_over_micro_batches(discriminator, encoder, groups):
    batch = MiniBatch(encoder, groups, budget(groups, 2))
    balances = [discriminator(pack)[1].item() for pack, _, _ in batch.micro_batches(len(batch))]
    extra = (
        gradients(discriminator, batch, LossSettings(balance_coef=0.5))[0]
        - gradients(discriminator, batch)[0]
    )
    assert extra == pytest.approx(0.5 * sum(balances) / len(balances), rel=1e-4)


def test_routers_learn_from_only_the_balance_loss(dense_folder, tmp_path, encoder, groups):
    """With gradient checkpointing, which lost the reference this gradient.

    Of four experts each view uses both of its own, so its routers have nothing to learn.
    """
    upcycle(dense_folder, tmp_path / "eight", experts=8)
    discriminator = load_discriminator(tmp_path / "eight")
    unpaired = [replace(group, students=[None]) for group in groups]
    discriminator.gradient_checkpointing_enable({"use_reentrant": False})
    _, _, found = gradients(
        discriminator.train(), MiniBatch(encoder, unpaired, 100_000), LossSettings(balance_coef=1.0)
    )
    assert all(found[name].any() for name in found if name.endswith("mlp.gate.weight"))
    assert any(name.endswith("mlp.gate.weight") for name in found)


def test_invalid_students_are_left_out(discriminator, encoder, groups):
    scores = score_groups(discriminator, MiniBatch(encoder, groups, 100_000), RANKS)
    assert scores.valid.tolist() == [
        [spans is not None for spans in group.students] for group in groups
    ]
    assert valid_pairs(groups) == int(scores.valid.sum())


def test_gradient_penalty_estimates_the_gradients_of_the_scores(discriminator, encoder, groups):
    """Against derivatives by autograd, span by span; the estimate is a mean over noise."""
    group = replace(groups[0], students=groups[0].students[:1])
    batch = MiniBatch(encoder, [group], 100_000)
    ((pack, index, _),) = batch.micro_batches(1)
    seen = []
    embed = discriminator.get_input_embeddings()
    hook = embed.register_forward_hook(lambda _m, _i, out: seen.append(out))
    spans, _ = discriminator(pack)
    hook.remove()
    (embeddings,) = seen
    squares = []
    for span in spans:
        (gradient,) = torch.autograd.grad(span, embeddings, retain_graph=True)
        squares.append((gradient.square().sum(-1) * embeddings.square().mean(-1)).sum())
    expected = (
        torch.stack(squares)[index.teacher].sum() + torch.stack(squares)[index.student].sum()
    ) / 4

    torch.manual_seed(0)
    alone = backward_groups(discriminator, batch, PAIRS_ONLY, RANKS).loss
    penalized = replace(PAIRS_ONLY, gradient_penalty=1.0)
    draws = [
        backward_groups(discriminator, batch, penalized, RANKS).loss - alone for _ in range(60)
    ]
    assert sum(draws) / len(draws) == pytest.approx(expected.item(), rel=0.4)
    assert NOISE < 0.1
    assert len(set(draws)) == len(draws)


def test_gradient_penalty_decreases_in_training(discriminator, encoder, groups):
    batch = MiniBatch(encoder, groups[:2], 100_000)
    heavy = LossSettings(score_regularization=0.0, balance_coef=0.0, gradient_penalty=100.0)
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=1e-3)
    losses = []
    for step in range(8):
        torch.manual_seed(step % 2)
        losses.append(backward_groups(discriminator, batch, heavy, RANKS).loss)
        optimizer.step()
        optimizer.zero_grad()
    assert sum(losses[-2:]) < sum(losses[:2])


def test_expert_choices_are_counted_per_layer_and_set(discriminator, encoder, groups):
    ((pack, _, _),) = MiniBatch(encoder, groups[:2], 100_000).micro_batches(1)
    discriminator(pack)
    choices = expert_choices(discriminator)
    assert choices.shape == (
        len(discriminator.routers()),
        3,
        discriminator.config.text_config.num_experts,
    )
    for layer, kinds in zip(
        choices, [pack.token_kinds, pack.token_kinds[pack.terminals]], strict=True
    ):
        tokens = torch.bincount(
            kinds, minlength=3
        ).double()  # the last layer has terminal tokens alone
        tokens[:PROMPT] = 0  # of four experts, views have no choice
        torch.testing.assert_close(layer.sum(-1), tokens, rtol=1e-4, atol=1e-2)
    half = choices.shape[-1] // 2
    assert not choices[:, 0, half:].any()
    assert not choices[:, 1, :half].any()


def test_few_steps_separate_teacher_and_policy(discriminator, encoder, groups):
    batch = MiniBatch(encoder, groups, 100_000)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-3)
    for _ in range(12):
        scores = backward_groups(discriminator, batch, LossSettings(), RANKS).scores
        optimizer.step()
        optimizer.zero_grad()
    metrics = pair_metrics(pair_sums(scores))
    assert metrics["perception/accuracy"] > 0.9
    assert metrics["reasoning/accuracy"] > 0.9
