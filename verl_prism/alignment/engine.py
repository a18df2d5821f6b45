"""verl's FSDP engine with the discriminator as its module."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from verl.utils.device import get_device_id, get_device_name
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngine

from verl_prism.discriminator import load_discriminator
from verl_prism.discriminator.batch import Group, SpanEncoder
from verl_prism.discriminator.ranks import Ranks
from verl_prism.discriminator.step import DiscriminatorStep, Optimization, StepResult, StepSettings

MODEL_TYPE = "prism_discriminator"


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu"])
class DiscriminatorEngine(FSDPEngine):
    """Sharding, optimizer, offload and checkpoints are verl's; the module and its mini-batch are ours."""

    def _build_module(self) -> torch.nn.Module:
        attention = self.model_config.hf_config._attn_implementation
        module = load_discriminator(self.model_config.local_path, attention=attention)
        if self.model_config.enable_gradient_checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        return module

    def prepare_steps(self, settings: StepSettings, faults: Path, steps: int = 0) -> None:
        """To be called after `initialize`, and when a checkpoint is loaded. faults, steps: see `DiscriminatorStep`."""
        self._step = DiscriminatorStep(
            self.module,
            SpanEncoder(self.model_config.tokenizer, self.module.config),
            settings,
            Optimization(self.optimizer_step, self.optimizer_zero_grad),
            Ranks(get_device_id(), self.get_data_parallel_group()),
            faults,
            sync=lambda last: self._gradient_sync_context(is_last_micro_batch=last),
            autocast=self._autocast,
            steps=steps,
        )

    def step_on(self, groups: Sequence[Group]) -> StepResult:
        """Score this rank's groups, and learn from the mini-batch that all ranks' groups make up."""
        result = self._step(groups)
        return StepResult(result.scores, result.metrics | {"lr": self.lr_scheduler_step()})

    def _autocast(self) -> AbstractContextManager:
        enabled = self._autocast_dtype != torch.float32
        return torch.autocast(get_device_name(), dtype=self._autocast_dtype, enabled=enabled)
