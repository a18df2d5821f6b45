"""The trainer of stage 2: verl's synchronous PPO trainer, rewarded by a discriminator that learns as it judges.

Selected by `trainer.v1.trainer_mode=adversarial_opd`. A step is verl's own: rollout, old log-probabilities, advantage,
policy update. Our part is the advantage: the discriminator scores the rollouts and learns from them in one forward
pass, and the policy is rewarded with its group-normalised scores.
"""

import os
from typing import Any

import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import RayClassWithInitArgs, RayWorkerGroup
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.utils.debug import marked_timer

import verl_prism.alignment.estimator  # noqa: F401  registers the advantage estimator in this process
from verl_prism.alignment.advantage import (
    AlignmentAdvantage,
    alignment_advantage,
    reference_advantage,
    spread_over_tokens,
)
from verl_prism.alignment.groups import FIELDS, token_ranges, uid_of
from verl_prism.alignment.worker import SCORE_FIELDS, AdversarialOPDWorker, DiscriminatorWorker
from verl_prism.discriminator.batch import VIEWS
from verl_prism.trainer.ppo import PrismTrainer
from verl_prism.trainer.transfer import column

ROLE = "discriminator"
POOL = "discriminator_pool"
NONFINITE = "discriminator/nonfinite"  # the metric that is 1 where the scores are of no use


@register_trainer("adversarial_opd")
class AdversarialOPDTrainer(PrismTrainer):
    """Adversarial on-policy distillation."""

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        if self._colocated:
            role = next(
                role
                for role in self.role_worker_mapping
                if role in (Role.ActorRollout, Role.ActorRolloutRef)
            )
            self.role_worker_mapping[role] = ray.remote(AdversarialOPDWorker)
        else:
            self.resource_pool_manager.resource_pool_spec[POOL] = [
                self.prism.discriminator.pool_devices
            ]
            self.mapping[ROLE] = POOL  # the manager's own dictionary, keyed by role

    @property
    def _colocated(self) -> bool:
        return self.prism.discriminator.placement == "colocated"

    def _load_checkpoint(self):
        self.discriminator_wg: Any = (
            self.actor_rollout_wg if self._colocated else self._spawn_discriminator()
        )
        super()._load_checkpoint()
        if self.global_steps:
            folder = os.path.join(self.config.trainer.resume_from_path, ROLE)
            self.discriminator_wg.load_discriminator(folder, self.global_steps)

    def _spawn_discriminator(self) -> Any:
        group: Any = RayWorkerGroup(  # verl binds the worker's methods to it
            resource_pool=self.resource_pool_manager.get_resource_pool(ROLE),
            ray_cls_with_init=RayClassWithInitArgs(
                cls=ray.remote(DiscriminatorWorker), prism=self.prism
            ),
            device_name=self.config.trainer.device,
        )
        group.reset()
        return group

    def _save_checkpoint(self):
        """The discriminator goes first: at the end of verl's own part the checkpoint is published."""
        step = f"global_step_{self.global_steps}"
        folder = os.path.join(self.config.trainer.default_local_dir, step, ROLE)
        self.discriminator_wg.save_discriminator(folder, self.global_steps)
        super()._save_checkpoint()

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        with marked_timer("update_discriminator", self.timing_raw):
            rollouts = self._update_discriminator(batch, metrics)
        self._reward(batch, rollouts, metrics)
        return super()._compute_advantage(batch, metrics)

    def _update_discriminator(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Score this step's rollouts and learn from them. Returns them with groups standing together."""
        real = [
            key
            for key, tag in zip(batch.keys, batch.tags, strict=True)
            if not tag.get("is_padding", False)
        ]
        groups = list(
            dict.fromkeys(map(uid_of, real))
        )  # their names are random: in the order of the batch
        keys = sorted(real, key=lambda key: groups.index(uid_of(key)))
        rollouts = batch.select_keys(keys)
        rollouts.fields, rollouts.extra_info = list(FIELDS), {}
        scored = self.discriminator_wg.update_discriminator(rollouts)
        of_all_ranks = scored.extra_info["metrics"][
            0
        ]  # a list with one entry per rank, and the same on each
        metrics.update({f"discriminator/{name}": value for name, value in of_all_ranks.items()})
        return rollouts

    def _reward(self, batch: KVBatchMeta, rollouts: KVBatchMeta, metrics: dict) -> None:
        """Put the advantage of each of a rollout's tokens in the place of its reward; padding rows get 0."""
        advantages = self._token_advantages(rollouts, metrics)
        lengths = [tag["response_len"] for tag in batch.tags]
        rewards = [
            advantages.get(key, torch.zeros(n)) for key, n in zip(batch.keys, lengths, strict=True)
        ]
        nested = torch.nested.as_nested_tensor(rewards, layout=torch.jagged)
        fields = TensorDict({"rm_scores": nested}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _token_advantages(self, rollouts: KVBatchMeta, metrics: dict) -> dict[str, torch.Tensor]:
        """Advantages[response length] by key of the rollout."""
        data = tq.kv_batch_get(
            keys=rollouts.keys,
            partition_id=rollouts.partition_id,
            select_fields=[*SCORE_FIELDS, "extra_fields"],
        )
        infos = [fields["reward_extra_info"] for fields in column(data["extra_fields"])]
        metrics.update(_fault_metrics([info["fault"] for info in infos]))
        advantage = self._advantage(
            torch.stack([data[field].reshape(-1) for field in SCORE_FIELDS])
        )
        if not metrics[NONFINITE]:
            metrics.update(_advantage_metrics(advantage))
        ranges = (
            [token_ranges(info) for info in infos] if self.prism.align.credit == "span" else None
        )
        tokens = spread_over_tokens(
            advantage, [tag["response_len"] for tag in rollouts.tags], ranges
        )
        return dict(zip(rollouts.keys, tokens, strict=True))

    def _advantage(self, scores: torch.Tensor) -> AlignmentAdvantage:
        """From scores[views, rollouts] of whole groups."""
        settings = self.prism.align
        grouped = scores.reshape(len(VIEWS), -1, self.prism.rollout.samples_per_prompt)
        weights = torch.tensor([settings.perception_weight, settings.reasoning_weight])
        valid = ~grouped[0].isnan()
        if settings.normalization == "reference":
            return reference_advantage(grouped, valid, weights, settings.format_penalty)
        return alignment_advantage(
            grouped, valid, weights, settings.format_penalty, settings.std_floor
        )

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Where the discriminator's numbers are not finite there are no advantages, and the policy stays as it is."""
        return batch if metrics[NONFINITE] else super()._update_actor(batch, metrics)

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict, timing_raw, global_steps, epoch
    ) -> None:
        """verl's, without its score and reward of a response: sums over tokens, which of advantages mean nothing."""
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        for name in [
            name for name in metrics if name.startswith(("critic/score/", "critic/rewards/"))
        ]:
            del metrics[name]


def _advantage_metrics(advantage: AlignmentAdvantage) -> dict[str, float]:
    groups = len(advantage.values)
    return {
        "align/advantage_std": advantage.values.std(correction=0).item(),
        "align/groups_without_valid": advantage.groups_without_valid / groups,
        "align/groups_degenerate": advantage.groups_degenerate / groups,
    }


def _fault_metrics(faults: list[str]) -> dict[str, float]:
    """The share of each format fault among the rollouts; "" is none."""
    shares = {
        f"align/fault/{fault}": faults.count(fault) / len(faults)
        for fault in dict.fromkeys(faults)
        if fault
    }
    return {"align/invalid": sum(map(bool, faults)) / len(faults), **shares}
