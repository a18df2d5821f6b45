"""Training of the discriminator in the warm-up: one rank's model, optimizer and schedule."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import get_cosine_schedule_with_warmup

from verl_prism.checkpoints.store import Checkpoint
from verl_prism.config import Discriminator, Hardware
from verl_prism.discriminator import (
    DiscriminatorStep,
    Optimization,
    PrismDiscriminatorForTokenClassification,
    Ranks,
    StepResult,
    StepSettings,
    load_discriminator,
    pair_metrics,
    pair_sums,
    shard,
)
from verl_prism.run_folder import RunFolder
from verl_prism.stages.warmup_data import Share
from verl_prism.stages.warmup_state import TrainingState

LR_WARMUP_SHARE = 0.1


class WarmupTraining:
    """The discriminator of one rank in training; `step` is the number of steps so far."""

    def __init__(
        self,
        folder: RunFolder,
        settings: Discriminator,
        hardware: Hardware,
        total_steps: int,
        ranks: Ranks,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.ranks = ranks
        self.model = load_model(folder.upcycled, hardware, ranks)
        self._grad_clip = settings.grad_clip
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self._schedule = get_cosine_schedule_with_warmup(
            self._optimizer, math.ceil(LR_WARMUP_SHARE * total_steps), total_steps
        )
        self.state = TrainingState(self.model, self._optimizer, self._schedule, ranks)
        self.step = 0
        if checkpoint:
            self.state.restore(checkpoint.folder)
            self.step = checkpoint.step
        step_settings = StepSettings.from_mapping(settings.model_dump())
        self._learn = DiscriminatorStep(
            self.model,
            replace(step_settings, updates_per_step=1, skip_above_accuracy=None),
            Optimization(self._step_optimizer, self._optimizer.zero_grad),
            ranks,
            folder.path,
            self.step,
        )

    def train_step(self, share: Share, seed: int) -> StepResult:
        """Learn from this rank's share of a step; return its scores, and metrics of all ranks."""
        self.model.train()
        self.step += 1
        # The gradient penalty samples noise, which must not depend on where a run was resumed.
        torch.manual_seed(seed + self.step * self.ranks.world_size + self.ranks.rank)
        result = self._learn(share.groups, share.plan)
        self._schedule.step()
        lr = self._schedule.get_last_lr()[0]
        return replace(result, metrics=result.metrics | {"lr": lr})

    def _step_optimizer(self) -> float:
        """Clip the gradients and step, unless their norm is not finite; return the norm."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._grad_clip)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if math.isfinite(norm.item()):
            self._optimizer.step()
        return norm.item()

    def measure(self, shares: Iterable[Share]) -> dict[str, float]:
        """Return the metrics of this rank's shares, over all ranks, without learning from them.

        Those named `scrambled/…` are a control: with the patches of the images in random order, a
        discriminator that looks at the images is less accurate.
        """
        self.model.eval()
        generator = torch.Generator().manual_seed(0)
        sums: Counter[str] = Counter()
        scrambled_sums: Counter[str] = Counter()
        for share in shares:
            sums.update(pair_sums(self._learn.score(share.groups)))
            scrambled = [group.scrambled(generator) for group in share.groups]
            scrambled_sums.update(pair_sums(self._learn.score(scrambled)))
        control = self._totals(scrambled_sums)
        return self._totals(sums) | {f"scrambled/{name}": each for name, each in control.items()}

    def _totals(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of sums over all ranks."""
        totals = self.ranks.sum(list(sums.values()))
        return pair_metrics(dict(zip(sums, totals, strict=True)))

    def gathered_tensors(self) -> dict[str, Any]:
        """Return all parameters, unsharded, on CPU. Every rank must call this."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(self.model, options=options)


def load_model(
    folder: Path, hardware: Hardware, ranks: Ranks
) -> PrismDiscriminatorForTokenClassification:
    """Return the upcycled discriminator, sharded over the ranks."""
    model = load_discriminator(folder, attention=hardware.attention)
    if hardware.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    shard(model, ranks, getattr(torch, hardware.dtype))
    return model
