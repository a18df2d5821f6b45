"""Scores of groups and their gradients, one micro-batch after another.

The warm-up, scoring and alignment all use these functions.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from verl_prism.discriminator.batch import (
    PROMPT,
    Group,
    GroupEncoder,
    Pack,
    ScoreIndex,
    valid_pairs,
)
from verl_prism.discriminator.loss import GroupScores, gradient_penalty, pairwise_loss
from verl_prism.discriminator.model import PrismDiscriminatorForTokenClassification as Discriminator
from verl_prism.discriminator.plan import RankPlan
from verl_prism.discriminator.ranks import Ranks
from verl_prism.discriminator.settings import LossSettings
from verl_prism.discriminator.spans import VIEWS

NOISE = 0.05  # of `gradient_penalty`; large enough to change a score that is computed in bfloat16


class MicroBatch(NamedTuple):
    """A pack and the index of its scores; `counts` is False if it is a placeholder."""

    pack: Pack
    score_index: ScoreIndex
    counts: bool


class MiniBatch:
    """A rank's groups as micro-batches, encoded and packed once for any number of passes.

    A group can be split over several micro-batches. `merge_scores` joins its scores again.
    """

    def __init__(
        self,
        encoder: GroupEncoder,
        groups: Sequence[Group],
        max_tokens: int,
        plan: RankPlan | None = None,
    ):
        """Pack the groups.

        Args:
            plan: the packs, which contain each student once; None: packs of at most `max_tokens`.
        """
        self.pairs = valid_pairs(groups)
        self.responses = sum(len(group.students) for group in groups)
        self._groups = groups
        self._plan = encoder.plan(groups, max_tokens) if plan is None else plan
        self._placeholder = encoder.placeholder()
        encoded = [encoder.encode(group) for group in groups]
        self._packs = []
        for parts in self._plan:
            self._packs.append(encoder.pack([encoded[g].only(members) for g, members in parts]))

    def __len__(self) -> int:
        """Return the number of micro-batches without placeholders, which may be 0."""
        return len(self._packs)

    def micro_batches(self, count: int) -> Iterator[MicroBatch]:
        """Yield all micro-batches, then placeholders up to `count`.

        Ranks that share a sharded model gather its parameters together, so all of them must run
        the same number of micro-batches.
        """
        for pack, index in self._packs:
            yield MicroBatch(pack, index, True)
        for _ in range(count - len(self)):
            yield MicroBatch(*self._placeholder, False)

    def merge_scores(self, parts: Sequence[GroupScores]) -> GroupScores:
        """Join the scores of the micro-batches to the scores of the groups."""
        num_groups = len(self._groups)
        num_students = max((len(group.students) for group in self._groups), default=0)
        teacher = torch.zeros(len(VIEWS), num_groups)
        student = torch.zeros(len(VIEWS), num_groups, num_students)
        valid = torch.zeros(num_groups, num_students, dtype=torch.bool)
        for pack, scores in zip(self._plan, parts, strict=True):
            for p, (group, members) in enumerate(pack):
                teacher[:, group] = scores.teacher[:, p]
                student[:, group, members] = scores.student[:, p, : len(members)]
                valid[group, members] = scores.valid[p, : len(members)]
        return GroupScores(teacher, student, valid)


@dataclass(frozen=True)
class Totals:
    """Counts of a mini-batch over all ranks."""

    pairs: int  # valid pairs of all ranks
    packs: int  # micro-batches of all ranks, without placeholders
    num_micro_batches: int  # that every rank runs

    @classmethod
    def of(cls, batch: MiniBatch, ranks: Ranks) -> "Totals":
        """Count together with all ranks."""
        pairs, packs = ranks.sum([batch.pairs, len(batch)])
        return cls(int(pairs), int(packs), int(ranks.max(len(batch))))


@dataclass(frozen=True)
class Backward:
    """The results of this rank's backward pass, besides the gradients."""

    scores: GroupScores
    loss: float  # this rank's share; the loss of the mini-batch is the sum over ranks
    expert_choices: Tensor  # as `expert_choices` returns, summed over micro-batches

    @property
    def finite(self) -> bool:
        """Whether the loss and the scores are finite."""
        return math.isfinite(self.loss) and self.scores.finite


@torch.no_grad()
def score_groups(
    model: Discriminator, batch: MiniBatch, ranks: Ranks, totals: Totals | None = None
) -> GroupScores:
    """Score groups without gradients. All ranks call it together."""
    totals = totals or Totals.of(batch, ranks)
    parts = []
    for pack, index, counts in batch.micro_batches(totals.num_micro_batches):
        spans, _ = model(pack.to(ranks.device))
        if counts:
            parts.append(GroupScores.gather(spans, index).detach())
    return batch.merge_scores(parts)


def backward_groups(
    model: Discriminator,
    batch: MiniBatch,
    settings: LossSettings,
    ranks: Ranks,
    totals: Totals | None = None,
) -> Backward:
    """Accumulate the gradient of the loss, and return the scores of the same forward pass.

    All ranks call it together. The loss is multiplied by their number, because gradients are
    averaged over them. How groups are split over micro-batches and ranks does not change the loss
    of the pairs. The load-balancing loss is the mean over the micro-batches of all ranks, each with
    the same weight; a rank with more micro-batches contributes more to it.
    """
    totals = totals or Totals.of(batch, ranks)
    parts = []
    total_loss = torch.zeros(())
    choices = torch.zeros(())
    for pack, index, counts in batch.micro_batches(totals.num_micro_batches):
        pack = pack.to(ranks.device)
        spans, balance = model(pack)
        pack_choices = expert_choices(model)
        scores = GroupScores.gather(spans, index)
        balance_share = settings.balance_coef * balance / max(totals.packs, 1)
        loss = pairwise_loss(scores, totals.pairs, settings) + balance_share
        if settings.gradient_penalty:
            with _noisy_embeddings(model):
                perturbed = GroupScores.gather(model(pack)[0], index)
            penalty = gradient_penalty(scores, perturbed, NOISE, totals.pairs)
            loss = loss + settings.gradient_penalty * penalty
        (loss * (ranks.world_size if counts else 0.0)).backward()
        choices = choices + pack_choices * counts
        if counts:
            parts.append(scores.detach())
            total_loss = total_loss + loss.detach().cpu()
    return Backward(batch.merge_scores(parts), total_loss.item(), choices)


@torch.no_grad()
def expert_choices(model: Discriminator) -> Tensor:
    """Return choices[layers, sets, experts] of the last forward pass; no layers without experts.

    A choice is one token of a set (the sets are VIEWS and then the prompt) that chose an expert.
    """
    choices = []
    for router in model.routers():
        tokens = router.sets.members.sum(-1, keepdim=True)
        choices.append(router.load() * tokens)
    if not choices:
        return torch.zeros(0, PROMPT + 1, 1, dtype=torch.double)
    return torch.stack(choices).double().cpu()


@contextmanager
def _noisy_embeddings(model: Discriminator) -> Iterator[None]:
    """Add Gaussian noise to the text's embeddings, relative to each token's root mean square."""

    def perturb(module: nn.Module, inputs: object, embeddings: Tensor) -> Tensor:
        scale = embeddings.detach().square().mean(-1, keepdim=True).sqrt()
        return embeddings + NOISE * scale * torch.randn_like(embeddings)

    hook = model.get_input_embeddings().register_forward_hook(perturb)
    try:
        yield
    finally:
        hook.remove()
