"""The trainer of stage 2: verl's synchronous PPO trainer with a discriminator as the reward.

Selected by `trainer.v1.trainer_mode=adversarial_opd`. Rollout, old log-probabilities and policy
update are verl's. The advantage is ours: in one forward pass the discriminator scores the rollouts
and learns from them, and the policy is rewarded with the group-normalized scores.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.single_controller.ray import RayClassWithInitArgs, RayWorkerGroup
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.utils.debug import marked_timer

import verl_prism.alignment.estimator  # noqa: F401  registers the advantage estimator
from verl_prism.alignment.advantage import (
    AlignmentAdvantage,
    alignment_advantage,
    combined_terms,
    gaussian_quantiles,
    normalize_groups,
    reference_advantage,
    small_spreads,
    spread_over_tokens,
)
from verl_prism.alignment.groups import (
    ACCURACY,
    Info,
    RowScores,
    keys_by_group,
    read_infos,
    token_ranges,
)
from verl_prism.alignment.planner import StepPlanner
from verl_prism.alignment.worker import AdversarialOPDWorker, DiscriminatorWorker
from verl_prism.config import Align
from verl_prism.discriminator.spans import VIEWS
from verl_prism.trainer.ppo import PrismTrainer

ROLE = "discriminator"
POOL = "discriminator_pool"
NONFINITE = "discriminator/nonfinite"  # metric: 1 if the step's scores must not be used
SMALL_SPREAD = 0.15  # of the standard deviation of all scores of a step
Metrics = dict[str, float]
SUMS_OVER_TOKENS = ("critic/score/", "critic/rewards/")  # verl's metrics


@dataclass(frozen=True)
class ScoredGroups:
    """The rollouts of a step, in groups of the same size."""

    groups: Sequence[Sequence[str]]  # keys of the rows of each group
    infos: Mapping[str, Info]  # by key
    scores: Mapping[str, RowScores]  # of valid rows, by key

    @property
    def keys(self) -> list[str]:
        """Keys of all rows, group by group."""
        return [key for group in self.groups for key in group]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return scores[views, groups, students], NaN if invalid, and valid[groups, students]."""
        no_scores = (torch.nan,) * len(VIEWS)
        rows = [[self.scores.get(key, no_scores) for key in group] for group in self.groups]
        valid = [[key in self.scores for key in group] for group in self.groups]
        return torch.tensor(rows).movedim(-1, 0), torch.tensor(valid)


@register_trainer("adversarial_opd")
class AdversarialOPDTrainer(PrismTrainer):
    """Adversarial on-policy distillation."""

    def _init_resource_pool_mgr(self) -> None:
        if self._colocated:
            self.worker_class = AdversarialOPDWorker
        super()._init_resource_pool_mgr()
        if not self._colocated:
            devices = self.prism.discriminator.pool_devices
            self.resource_pool_manager.resource_pool_spec[POOL] = [devices]
            self.mapping[ROLE] = POOL  # the dictionary that the manager looks roles up in

    @property
    def _colocated(self) -> bool:
        return self.prism.discriminator.placement == "colocated"

    def _load_checkpoint(self) -> None:
        self.discriminator_wg: Any = self.actor_rollout_wg
        if not self._colocated:
            self.discriminator_wg = self._spawn_discriminator()
        super()._load_checkpoint()
        if self.global_steps:
            folder = os.path.join(self.config.trainer.resume_from_path, ROLE)
            self.discriminator_wg.load_discriminator(folder, self.global_steps)

    def _spawn_discriminator(self) -> Any:
        worker = RayClassWithInitArgs(cls=ray.remote(DiscriminatorWorker), prism=self.prism)
        group: Any = RayWorkerGroup(  # verl binds the worker's methods to it
            resource_pool=self.resource_pool_manager.get_resource_pool(ROLE),
            ray_cls_with_init=worker,
            device_name=self.config.trainer.device,
        )
        group.reset()
        return group

    def _save_checkpoint(self) -> None:
        """Save the discriminator before verl's part, which publishes the checkpoint at its end."""
        step = f"global_step_{self.global_steps}"
        folder = os.path.join(self.config.trainer.default_local_dir, step, ROLE)
        self.discriminator_wg.save_discriminator(folder, self.global_steps)
        super()._save_checkpoint()

    def _compute_advantage(self, batch: KVBatchMeta, metrics: Metrics) -> KVBatchMeta:
        with marked_timer("update_discriminator", self.timing_raw):
            scored = self._update_discriminator(batch, metrics)
        self.marks = {key: view_scores(scores) for key, scores in scored.scores.items()}
        self._write_advantages(batch, scored, metrics)
        return super()._compute_advantage(batch, metrics)

    @property
    def _discriminator_restarts(self) -> bool:
        """Whether this step starts with the discriminator that the stage started with."""
        every = self.prism.discriminator.restart_every
        earlier = self.global_steps - 1
        return every is not None and earlier > 0 and earlier % every == 0

    @cached_property
    def _planner(self) -> StepPlanner:
        return StepPlanner(self.prism.discriminator)

    def _update_discriminator(self, batch: KVBatchMeta, metrics: Metrics) -> ScoredGroups:
        """Score this step's rollouts and learn from them."""
        if self._discriminator_restarts:
            self.discriminator_wg.reset_discriminator(self.global_steps - 1)
        groups = keys_by_group(batch)
        infos = read_infos([key for group in groups for key in group], batch.partition_id)
        ranks = self.discriminator_wg.world_size
        shares = self._planner.shares(groups, infos, batch.partition_id, ranks)
        scored = self.discriminator_wg.update_discriminator(shares)
        for name, value in scored[0].metrics.items():  # each rank returns those over all ranks
            metrics[f"discriminator/{name}"] = value
        scores: dict[str, RowScores] = {}
        for share in scored:
            scores.update(share.scores)
        return ScoredGroups(groups, infos, scores)

    def _write_advantages(self, batch: KVBatchMeta, scored: ScoredGroups, metrics: Metrics) -> None:
        """Write each token's advantage in place of its reward; rows of padding get 0."""
        lengths = {
            key: tag["response_len"] for key, tag in zip(batch.keys, batch.tags, strict=True)
        }
        advantages = self._token_advantages(scored, lengths, metrics)
        rows = []
        for key, length in lengths.items():
            rows.append(advantages.get(key, torch.zeros(length)))
        nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        fields = TensorDict({"rm_scores": nested}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _token_advantages(
        self, scored: ScoredGroups, lengths: Mapping[str, int], metrics: Metrics
    ) -> dict[str, Tensor]:
        """Return advantages[response length] by key of the rollout, and update the metrics."""
        keys = scored.keys
        infos = [scored.infos[key] for key in keys]
        metrics.update(_fault_metrics([info["fault"] for info in infos]))

        nonfinite = bool(metrics[NONFINITE])
        scores, valid = scored.tensors()
        accuracy = self._accuracy(scored, metrics)
        advantage = policy_advantage(self.prism.align, scores, valid & (not nonfinite), accuracy)
        if not nonfinite:
            metrics.update(_advantage_metrics(advantage))
            metrics.update(_spread_metrics(scores, valid))

        ranges = None
        if self.prism.align.credit == "span":
            ranges = [token_ranges(info) for info in infos]
        tokens = spread_over_tokens(advantage, [lengths[key] for key in keys], ranges)
        return dict(zip(keys, tokens, strict=True))

    def _accuracy(self, scored: ScoredGroups, metrics: Metrics) -> Tensor | None:
        """Return accuracy[G, N] if the advantage has a term for it."""
        if not self.prism.align.accuracy_weight:
            return None
        rows = [[scored.infos[key][ACCURACY] for key in group] for group in scored.groups]
        accuracy = torch.tensor(rows)
        metrics["align/accuracy"] = accuracy.mean().item()
        return accuracy

    def _update_actor(self, batch: KVBatchMeta, metrics: Metrics) -> KVBatchMeta:
        """Leave the policy unchanged if the discriminator's step was not finite."""
        if metrics[NONFINITE]:
            return batch
        return super()._update_actor(batch, metrics)

    def _compute_metrics(
        self,
        batch: KVBatchMeta,
        metrics: Metrics,
        timing_raw: dict[str, float],
        global_steps: int,
        epoch: int,
    ) -> None:
        """Drop verl's score and reward of a response: they sum advantages over its tokens."""
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        for name in list(metrics):
            if name.startswith(SUMS_OVER_TOKENS):
                del metrics[name]


def view_scores(scores: RowScores) -> dict[str, float]:
    """Return the score of each view by its name."""
    return {view.value: score for view, score in zip(VIEWS, scores, strict=True)}


def policy_advantage(
    settings: Align, scores: Tensor, valid: Tensor, accuracy: Tensor | None = None
) -> AlignmentAdvantage:
    """Return the advantage of scores[V, G, N] and valid[G, N] by the configured normalization.

    accuracy: [G, N] of the answers, if it has a weight.
    """
    weights = torch.tensor([settings.perception_weight, settings.reasoning_weight])
    penalty = settings.format_penalty
    floor = settings.std_floor
    match settings.normalization:
        case "reference":
            return reference_advantage(scores, valid, weights, penalty)
        case "combined":
            terms = combined_terms(scores, valid, weights, floor)
        case "quantile":
            quantiles = gaussian_quantiles(scores, valid, floor, settings.quantile_power)
            terms = weights[:, None, None] * quantiles
        case "valid":
            terms = weights[:, None, None] * normalize_groups(scores, valid, floor)
    if accuracy is None:
        return alignment_advantage(terms, scores, valid, penalty)
    common = settings.accuracy_weight * normalize_groups(accuracy, valid, floor)
    return alignment_advantage(terms, scores, valid, penalty, common)


def _advantage_metrics(advantage: AlignmentAdvantage) -> Metrics:
    groups = len(advantage.values)
    return {
        "align/advantage_std": advantage.values.std(correction=0).item(),
        "align/groups_without_valid": advantage.groups_without_valid / groups,
        "align/groups_degenerate": advantage.groups_degenerate / groups,
    }


def _spread_metrics(scores: Tensor, valid: Tensor) -> Metrics:
    """Return the share of groups with a small spread per view, if any group can be compared."""
    if not (valid.sum(-1) > 1).any():
        return {}
    shares = small_spreads(scores, valid, SMALL_SPREAD).tolist()
    return {f"align/small_spread/{view}": share for view, share in zip(VIEWS, shares, strict=True)}


def _fault_metrics(faults: Sequence[str]) -> Metrics:
    """Return the share of invalid rollouts and of each format fault ("" means no fault)."""
    invalid = [fault for fault in faults if fault]
    metrics = {"align/invalid": len(invalid) / len(faults)}
    for fault in dict.fromkeys(invalid):
        metrics[f"align/fault/{fault}"] = invalid.count(fault) / len(faults)
    return metrics
