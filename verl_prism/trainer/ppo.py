"""verl's synchronous PPO trainer with atomic checkpoints and early ends on request."""

from typing import Any

import ray
import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.debug import marked_timer

from verl_prism.checkpoints.fingerprint import checkpoint_store
from verl_prism.checkpoints.preemption import end_requested
from verl_prism.config import parse_prism
from verl_prism.trainer.on_policy import ratio_setting, take_shortcut
from verl_prism.trainer.sample_tables import SampleTables
from verl_prism.trainer.samples import Marks, step_samples
from verl_prism.trainer.worker import PrismWorker


class PublishCheckpoint(CheckpointCallback):
    """Publishes a checkpoint when verl has written all of its files."""

    def on_save(
        self,
        trainer: "PrismTrainer",
        global_step: int,
        checkpoint_dir: str,
        async_save: bool = False,
        **kwargs: Any,
    ) -> None:
        """Publish the checkpoint of `global_step`."""
        trainer.checkpoints.publish(global_step)


@register_trainer("prism")
class PrismTrainer(PPOTrainerSync):
    """The trainer of stage rlvr, selected by `trainer.v1.trainer_mode=prism`."""

    worker_class: type[PrismWorker] = PrismWorker  # of actor, rollout and reference

    def __init__(self, config: DictConfig) -> None:
        self.prism = parse_prism(config.prism)
        self.checkpoints = checkpoint_store(self.prism)
        # The mode has selected this class. From here on verl compares it with "sync" only.
        config.trainer.v1.trainer_mode = "sync"
        self._on_policy = ratio_setting(config) is None
        if self._on_policy:
            take_shortcut(config)
        super().__init__(config)
        self.marks: Marks = {}  # of the rollouts of this step, for the report
        self._sample_tables = SampleTables(self.prism)

    def _compute_metrics(
        self,
        batch: KVBatchMeta,
        metrics: dict[str, Any],
        timing_raw: dict[str, float],
        global_steps: int,
        epoch: int,
    ) -> None:
        """Keep samples of the step for the report, before verl deletes its rollouts."""
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        count = self.prism.samples_per_step
        samples = step_samples(global_steps, batch, count, self.tokenizer, self.marks)
        self._sample_tables.keep(samples, global_steps)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        """Skip the pass if each PPO ratio is 1; the loss then gets vLLM's log-probabilities."""
        if not self._on_policy:
            return super()._compute_old_log_prob(batch, metrics)
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["rollout_log_probs"]
        )
        data["old_log_probs"] = data.pop("rollout_log_probs")
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=data)
        return batch

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        actor_roles = {Role.ActorRollout, Role.ActorRolloutRef}
        for role in actor_roles & self.role_worker_mapping.keys():
            self.role_worker_mapping[role] = ray.remote(self.worker_class)

    def on_step_end(self) -> None:
        """Save and end after this step if an early end was requested."""
        if end_requested(self.checkpoints.run):
            self._save_and_end()
        super().on_step_end()

    def _save_and_end(self) -> None:
        if not self.checkpoints.reached(self.global_steps):
            with marked_timer("save_checkpoint", self.timing_raw, color="green"):
                self._save_checkpoint()
        # `PPOTrainer.fit` runs another step only while global_steps <= total_training_steps.
        self.total_training_steps = self.global_steps
