"""Scores of groups, and their gradients, micro-batch by micro-batch: the same for warm-up, scoring and alignment."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from verl_prism.discriminator.batch import Group, SpanBatch, SpanEncoder, micro_batches
from verl_prism.discriminator.loss import GroupScores, LossWeights, pairwise_loss

Model = Callable[[SpanBatch], tuple[Tensor, Tensor]]  # scores[R] and the load-balancing loss
GradientSync = Callable[[bool], AbstractContextManager]  # given whether it is the last micro-batch


def valid_pairs(groups: Sequence[Group]) -> int:
    return sum(spans is not None for group in groups for spans in group.students)


@torch.no_grad()
def score_groups(
    model: Model, encoder: SpanEncoder, groups: Sequence[Group], max_tokens: int, device: str | int = "cpu"
) -> GroupScores:
    """Scores without gradients."""
    parts = []
    for members in micro_batches(groups, encoder, max_tokens):
        batch, index = encoder.batch([groups[g] for g in members])
        parts.append(GroupScores.gather(model(batch.to(device))[0], index).detach())
    return GroupScores.concat(parts)


def backward_groups(
    model: Model,
    encoder: SpanEncoder,
    groups: Sequence[Group],
    weights: LossWeights,
    max_tokens: int,
    *,
    pairs: int,
    ranks: int = 1,
    rounds: int | None = None,
    sync: GradientSync = lambda last: nullcontext(),
    device: str | int = "cpu",
) -> GroupScores:
    """Accumulate the gradient of the mini-batch's loss and return the scores that it was computed from.

    Args:
        pairs: valid pairs of the whole mini-batch, over all ranks.
        ranks: ranks over which gradients are averaged afterwards; the loss is multiplied by it.
        rounds: micro-batches that every rank must run, as sharded parameters are gathered together; a rank with fewer
            repeats its last one with weight zero.
    Raises:
        FloatingPointError: a score is not finite; no parameter has been changed.
    """
    plan = list(micro_batches(groups, encoder, max_tokens))
    rounds = rounds or len(plan)
    parts: list[GroupScores] = []
    for turn in range(rounds):
        real = turn < len(plan)
        batch, index = encoder.batch([groups[g] for g in (plan[turn] if real else plan[-1])])
        with sync(turn == rounds - 1):
            rows, balance = model(batch.to(device))
            _require_finite(rows)
            scores = GroupScores.gather(rows, index)
            loss = ranks * pairwise_loss(scores, pairs, weights) + weights.balance * balance / len(plan)
            (loss if real else 0.0 * loss).backward()
        if real:
            parts.append(scores.detach())
    return GroupScores.concat(parts)


def _require_finite(rows: Tensor) -> None:
    if not rows.isfinite().all():
        raise FloatingPointError(
            f"{int((~rows.isfinite()).sum())} of {rows.numel()} discriminator scores are not finite; lower "
            "prism.discriminator.lr, or start again from the warmed-up discriminator"
        )
