"""The worker role "adversarial OPD": one rank of the discriminator.

It runs in the actor's process, or in a process of its own if the discriminator has its own devices.
"""

from pathlib import Path

from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.config import CheckpointConfig
from verl.workers.config import (
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    TrainingWorkerConfig,
)
from verl.workers.engine_workers import TrainingWorker

import verl_prism.alignment.engine as engine  # registers the engine in this process
from verl_prism.alignment.groups import RankShare, ScoredShare, read_groups, scores_by_key
from verl_prism.config import Prism, parse_prism
from verl_prism.discriminator.replay import Replay
from verl_prism.discriminator.settings import StepSettings
from verl_prism.trainer.worker import PrismWorker, connect_ranks


def training_worker_config(prism: Prism) -> TrainingWorkerConfig:
    """Translate our config to verl's config of a training worker."""
    settings = prism.discriminator
    hardware = prism.hardware
    short = {"float32": "fp32", "bfloat16": "bf16"}[hardware.dtype]
    return TrainingWorkerConfig(
        model_type=engine.MODEL_TYPE,
        model_config=HFModelConfig(
            path=str(settings.path),
            use_remove_padding=False,
            enable_gradient_checkpointing=hardware.gradient_checkpointing,
            override_config={"attn_implementation": hardware.attention},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            param_offload=hardware.offload,
            optimizer_offload=hardware.offload,
            mixed_precision={"param_dtype": short, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
            use_torch_compile=False,
            seed=prism.seed,
            full_determinism=prism.reproducible,
        ),
        optimizer_config=FSDPOptimizerConfig(
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            clip_grad=settings.grad_clip,
            total_training_steps=prism.steps,
            lr_warmup_steps=0,
        ),
        checkpoint_config=CheckpointConfig(
            save_contents=["model", "optimizer", "extra", "hf_model"]
        ),
    )


class DiscriminatorWorker(TrainingWorker):
    """One rank of the discriminator."""

    def __init__(self, prism: Prism):
        connect_ranks()
        super().__init__(training_worker_config(prism))
        self._settings = StepSettings.from_mapping(prism.discriminator.model_dump())
        self._dump_folder = prism.output
        self._replay = Replay(
            self._settings.replay_share, self._settings.replay_groups, f"{prism.seed}/{self.rank}"
        )

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reset(self, steps: int = 0) -> None:
        """Build the module and the optimizer, and prepare the step after the first `steps` ones.

        A discriminator that has learned is replaced by the one that the stage started from.
        """
        super().reset()
        self._prepare(steps)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reset_discriminator(self, steps: int) -> None:
        """Call `reset`, under the name that a hybrid worker also has."""
        self.reset(steps)

    def _prepare(self, steps: int) -> None:
        self.engine.prepare_steps(self._settings, self._dump_folder, steps, self._replay)

    @register(dispatch_mode=Dispatch.ALL_TO_ALL)
    def update_discriminator(self, share: RankShare) -> ScoredShare:
        """Score this rank's share of a step and learn from it.

        The driver passes a list with the share of each rank, and gets a list.
        """
        groups = read_groups(share)
        with self.engine.train_mode():
            result = self.engine.step_on(groups, share.plan)
        return ScoredShare(scores_by_key(share.groups, result.scores), result.metrics)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_discriminator(self, folder: str, step: int) -> None:
        """Save a checkpoint of `step`."""
        self.save_checkpoint(folder, None, step)
        self._replay.save(Path(folder), self.rank)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_discriminator(self, folder: str, step: int) -> None:
        """Load the checkpoint of `step` and prepare the step after it."""
        self.load_checkpoint(folder)
        self._replay.load(Path(folder), self.rank)
        self._prepare(step)


class AdversarialOPDWorker(PrismWorker):
    """verl's hybrid worker (actor, rollout, reference) with a rank of the discriminator."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Build verl's models and the discriminator."""
        super().init_model()
        self.discriminator = DiscriminatorWorker(parse_prism(self.config.prism))
        self.discriminator.reset()

    @register(dispatch_mode=Dispatch.ALL_TO_ALL)
    def update_discriminator(self, share: RankShare) -> ScoredShare:
        """See `DiscriminatorWorker.update_discriminator`."""
        return self.discriminator.update_discriminator(share)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reset_discriminator(self, steps: int) -> None:
        """See `DiscriminatorWorker.reset`."""
        self.discriminator.reset_discriminator(steps)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_discriminator(self, folder: str, step: int) -> None:
        """Save a checkpoint of `step`."""
        self.discriminator.save_discriminator(folder, step)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_discriminator(self, folder: str, step: int) -> None:
        """Load the checkpoint of `step` and prepare the step after it."""
        self.discriminator.load_discriminator(folder, step)
