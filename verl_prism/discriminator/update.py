"""Scores of groups, and their gradients, micro-batch by micro-batch: the same for warm-up, scoring and alignment."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from verl_prism.discriminator.batch import (
    PROMPT,
    VIEWS,
    Group,
    Pack,
    ScoreIndex,
    SpanEncoder,
    micro_batches,
)
from verl_prism.discriminator.loss import GroupScores, LossWeights, gradient_penalty, pairwise_loss
from verl_prism.discriminator.model import PrismDiscriminatorForTokenClassification as Discriminator

Autocast = Callable[[], AbstractContextManager]
GradientSync = Callable[[bool], AbstractContextManager]  # given whether it is the last micro-batch

NOISE = 0.05  # of `gradient_penalty`: large enough to move a score that is computed in bfloat16


def valid_pairs(groups: Sequence[Group]) -> int:
    return sum(spans is not None for group in groups for spans in group.students)


class MiniBatch:
    """Groups as micro-batches, encoded and packed once for any number of passes.

    max_tokens: of a micro-batch; a group over it is split, and its scores are put back together.
    """

    def __init__(self, encoder: SpanEncoder, groups: Sequence[Group], max_tokens: int):
        self.pairs = valid_pairs(groups)
        self._groups, self._students = len(groups), max(len(group.students) for group in groups)
        self._parts = micro_batches([encoder.encode(group) for group in groups], max_tokens)
        self._packs = [encoder.pack(parts) for parts in self._parts]

    def __len__(self) -> int:
        """Micro-batches."""
        return len(self._packs)

    def turns(self, rounds: int | None) -> Iterator[tuple[Pack, ScoreIndex, bool]]:
        """Each micro-batch, and whether it counts: up to `rounds` the smallest comes again, and does not.

        Ranks that share a sharded model gather its parameters together, so all must run as many micro-batches.
        """
        yield from ((pack, index, True) for pack, index in self._packs)
        pack, index = min(self._packs, key=lambda packed: packed[0].tokens)
        yield from ((pack, index, False) for _ in range((rounds or len(self)) - len(self)))

    def whole(self, scores: Sequence[GroupScores]) -> GroupScores:
        """The groups' scores, from those of the micro-batches in turn."""
        teacher = torch.zeros(len(VIEWS), self._groups)
        student = torch.zeros(len(VIEWS), self._groups, self._students)
        valid = torch.zeros(self._groups, self._students, dtype=torch.bool)
        for parts, of_parts in zip(self._parts, scores, strict=True):
            for p, part in enumerate(parts):
                here = slice(0, len(part.members))
                teacher[:, part.group] = of_parts.teacher[:, p]
                student[:, part.group, list(part.members)] = of_parts.student[:, p, here]
                valid[part.group, list(part.members)] = of_parts.valid[p, here]
        return GroupScores(teacher, student, valid)


@dataclass(frozen=True)
class Backward:
    """What a backward pass leaves besides gradients, of this rank."""

    scores: GroupScores
    loss: float  # this rank's share: the mini-batch's loss is the sum over ranks
    expert_choices: Tensor  # as `expert_choices`, over all micro-batches

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and self.scores.finite


@torch.no_grad()
def score_groups(
    model: Discriminator,
    batch: MiniBatch,
    *,
    rounds: int | None = None,
    autocast: Autocast = nullcontext,
    device: str | int = "cpu",
) -> GroupScores:
    """Scores without gradients."""
    parts = []
    for pack, index, counts in batch.turns(rounds):
        with autocast():
            spans, _ = model(pack.to(device))
        if counts:
            parts.append(GroupScores.gather(spans, index).detach())
    return batch.whole(parts)


def backward_groups(
    model: Discriminator,
    batch: MiniBatch,
    weights: LossWeights,
    *,
    pairs: int,
    ranks: int = 1,
    rounds: int | None = None,
    sync: GradientSync = lambda last: nullcontext(),
    autocast: Autocast = nullcontext,
    device: str | int = "cpu",
) -> Backward:
    """Accumulate the gradient of the mini-batch's loss and return the scores that it was computed from.

    The pairs' loss does not depend on how groups are split over micro-batches and ranks; the load-balancing loss is
    that of a micro-batch, and its mean over micro-batches and ranks is taken.

    Args:
        pairs: valid pairs of the whole mini-batch, over all ranks.
        ranks: ranks over which gradients are averaged afterwards; the loss is multiplied by it.
        rounds: micro-batches that every rank must run.
    """
    rounds = rounds or len(batch)
    parts, losses, choices = [], [], torch.zeros(())
    for turn, (pack, index, counts) in enumerate(batch.turns(rounds), start=1):
        pack = pack.to(device)
        with sync(turn == rounds):
            with autocast():
                spans, balance = model(pack)
                here = expert_choices(model)
            scores = GroupScores.gather(spans, index)
            share = pairwise_loss(scores, pairs, weights) + weights.balance * balance / (
                len(batch) * ranks
            )
            if weights.gradient_penalty:
                with autocast(), _noisy_embeddings(model):
                    perturbed = GroupScores.gather(model(pack)[0], index)
                share = share + weights.gradient_penalty * gradient_penalty(
                    scores, perturbed, NOISE, pairs
                )
            (ranks * share if counts else 0.0 * share).backward()
        if counts:
            parts.append(scores.detach())
            losses.append(share.detach())
            choices = choices + here
    return Backward(batch.whole(parts), torch.stack(losses).sum().item(), choices)


@torch.no_grad()
def expert_choices(model: Discriminator) -> Tensor:
    """[layers, sets, experts]: how often each set's tokens chose each expert in the last forward, in the order of
    VIEWS and then the prompt; no layers where there are no experts."""
    choices = [
        router.load() * router.sets.members.sum(-1, keepdim=True) for router in model.routers()
    ]
    return (
        torch.stack(choices).double().cpu()
        if choices
        else torch.zeros(0, PROMPT + 1, 1, dtype=torch.double)
    )


@contextmanager
def _noisy_embeddings(model: Discriminator) -> Iterator[None]:
    """Within it, Gaussian noise is added to the embeddings of text, in proportion to each token's root mean square."""

    def perturb(_module, _inputs, embeddings: Tensor) -> Tensor:
        scale = embeddings.detach().square().mean(-1, keepdim=True).sqrt()
        return embeddings + NOISE * scale * torch.randn_like(embeddings)

    hook = model.get_input_embeddings().register_forward_hook(perturb)
    try:
        yield
    finally:
        hook.remove()
