"""What stages align and rlvr add to verl's synchronous PPO trainer: checkpoints that are whole or not there, and an end
that somebody asked for.
"""

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_prism.checkpoints.preemption import end_requested
from verl_prism.checkpoints.store import publish
from verl_prism.config import parse_prism


class PublishCheckpoint(CheckpointCallback):
    """Called when all that makes up a checkpoint has been written aside."""

    def on_save(
        self, trainer, global_step: int, checkpoint_dir: str, async_save: bool = False, **kwargs
    ) -> None:
        publish(trainer.prism, global_step)


@register_trainer("prism")
class PrismTrainer(PPOTrainerSync):
    """verl's. Selected by `trainer.v1.trainer_mode=prism`."""

    @property
    def trainer_mode(self) -> str:
        """verl compares the mode with "sync" in several places, and synchronous is what this trainer is."""
        return "sync"

    @trainer_mode.setter
    def trainer_mode(self, _: str) -> None:
        self.prism = parse_prism(self.config.prism)

    def step(self, metrics: dict, timing_raw: dict):
        """Where an end was asked for, verl saves after this step and makes no other."""
        batch = super().step(metrics, timing_raw)
        if end_requested(self.prism):
            self.config.trainer.save_freq, self.total_training_steps = 1, self.global_steps
        return batch
