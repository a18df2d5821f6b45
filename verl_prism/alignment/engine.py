"""verl's FSDP engine with the discriminator as its module."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngine

from verl_prism.discriminator import load_discriminator
from verl_prism.discriminator.batch import Group, SpanBatch, SpanEncoder, micro_batches
from verl_prism.discriminator.loss import GroupScores, LossWeights, pair_metrics, pair_sums
from verl_prism.discriminator.update import backward_groups, valid_pairs

MODEL_TYPE = "prism_discriminator"


@dataclass(frozen=True)
class DiscriminatorUpdate:
    """The scores of this rank's groups before the update, and metrics of all ranks."""

    scores: GroupScores
    metrics: dict[str, float]


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu"])
class DiscriminatorEngine(FSDPEngine):
    """Sharding, optimizer, offload and checkpoints are verl's; the module and its mini-batch are ours."""

    def _build_module(self) -> torch.nn.Module:
        attention = self.model_config.hf_config._attn_implementation
        module = load_discriminator(self.model_config.local_path, attention=attention)
        if self.model_config.enable_gradient_checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        return module

    def update_groups(self, groups: Sequence[Group], weights: LossWeights, max_tokens: int) -> DiscriminatorUpdate:
        """One optimizer step on the mini-batch that all ranks' groups make up.

        Without a valid pair on any rank there is nothing to learn from: no parameter changes, and the step is counted.
        """
        encoder = SpanEncoder(self.model_config.tokenizer, self.module.config)
        pairs = int(self._reduce(valid_pairs(groups), dist.ReduceOp.SUM))
        rounds = int(self._reduce(sum(1 for _ in micro_batches(groups, encoder, max_tokens)), dist.ReduceOp.MAX))
        self.optimizer_zero_grad()
        scores = backward_groups(
            self._forward,
            encoder,
            groups,
            weights,
            max_tokens,
            pairs=pairs,
            ranks=self.get_data_parallel_size(),
            rounds=rounds,
            sync=lambda last: self._gradient_sync_context(is_last_micro_batch=last),
            device=get_device_id(),
        )
        metrics = self._metrics(scores)
        if pairs:
            metrics |= {"grad_norm": self.optimizer_step(), "lr": self.lr_scheduler_step()}
        else:
            self.optimizer_zero_grad()
        return DiscriminatorUpdate(scores, metrics | {"updates_skipped": float(not pairs)})

    def _forward(self, batch: SpanBatch) -> tuple[torch.Tensor, torch.Tensor]:
        enabled = self._autocast_dtype != torch.float32
        with torch.autocast(get_device_name(), dtype=self._autocast_dtype, enabled=enabled):
            return self.module(batch)

    def _metrics(self, scores: GroupScores) -> dict[str, float]:
        """Sums are added up over ranks first, so that every rank returns the same means over all pairs."""
        sums = pair_sums(scores)
        total = self._reduce(list(sums.values()), dist.ReduceOp.SUM)
        return pair_metrics(dict(zip(sums, total.tolist(), strict=True)))

    def _reduce(self, value: float | list[float], op: Any) -> torch.Tensor:
        tensor = torch.tensor(value, dtype=torch.float64, device=get_device_id())
        dist.all_reduce(tensor, op=op, group=self.get_data_parallel_group())
        return tensor
