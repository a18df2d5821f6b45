"""verl's FSDP engine with the discriminator as its module."""

from collections.abc import Sequence
from pathlib import Path

from verl.utils.device import get_device_id
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngine

from verl_prism.discriminator.batch import Group
from verl_prism.discriminator.model import PrismDiscriminatorForTokenClassification as Discriminator
from verl_prism.discriminator.model import load_discriminator
from verl_prism.discriminator.plan import RankPlan
from verl_prism.discriminator.ranks import Ranks, shard
from verl_prism.discriminator.replay import Replay
from verl_prism.discriminator.settings import StepSettings
from verl_prism.discriminator.step import DiscriminatorStep, Optimization, StepResult

MODEL_TYPE = "prism_discriminator"


@EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu"])
class DiscriminatorEngine(FSDPEngine):
    """The discriminator's module and step, with verl's sharding, optimizer and checkpoints."""

    def _build_module(self) -> Discriminator:
        attention = self.model_config.hf_config._attn_implementation
        module = load_discriminator(self.model_config.local_path, attention=attention)
        if self.model_config.enable_gradient_checkpointing:
            module.gradient_checkpointing_enable({"use_reentrant": False})
        return module

    def _build_fsdp_module(self, module: Discriminator) -> Discriminator:
        """Shard the module as in the warm-up."""
        dtype = PrecisionType.to_dtype(self.engine_config.mixed_precision["param_dtype"])
        shard(module, self._ranks(), dtype)
        return module

    def _ranks(self) -> Ranks:
        return Ranks(get_device_id(), self.get_data_parallel_group())

    def prepare_steps(
        self,
        settings: StepSettings,
        dump_folder: Path,
        steps: int = 0,
        replay: Replay | None = None,
    ) -> None:
        """Prepare the steps after the first `steps` ones.

        Call it after `initialize` and again after loading a checkpoint.

        Args:
            dump_folder: see `DiscriminatorStep`.
            replay: see `DiscriminatorStep`.
        """
        self._step = DiscriminatorStep(
            self.module,
            settings,
            Optimization(self.optimizer_step, self.optimizer_zero_grad),
            self._ranks(),
            dump_folder,
            steps,
            replay,
        )

    def step_on(self, groups: Sequence[Group], plan: RankPlan) -> StepResult:
        """Score this rank's groups, and learn from the mini-batch of all ranks' groups.

        Args:
            plan: the packs of this rank.
        """
        result = self._step(groups, plan)
        return StepResult(result.scores, result.metrics | {"lr": self.lr_scheduler_step()})
