"""verl's replay buffer with its options in the config, selected by `trainer.v1.sampler`.

A failed rollout stops the run; verl would train on what is left of its group. In stage 3 the buffer
also adds metrics of the reward: verl averages what a reward function returns only in validation.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from verl_prism.errors import UserError
from verl_prism.report.summary import FILTERED
from verl_prism.response import FormatFault
from verl_prism.rewards.opinion import Opinion
from verl_prism.trainer.transfer import column


class ConfiguredReplayBuffer(ReplayBuffer):
    """Takes `trainer.v1.sampler.sampler_kwargs` as arguments of verl's buffer.

    `{poll_interval: 0.1}` polls for finished rollouts more often than every 2 s, which is most of a
    step with a tiny policy. verl does not pass the options of group filtering to a buffer that the
    config selects, so DAPO lists them here too.

    Rollouts come in the order of the data; verl returns them in the order in which they finish.
    `wait_for_all` is our own option: sample only when no rollout is running. Otherwise the result
    of dynamic sampling depends on which rollout finishes first.
    """

    def __init__(self, *, sampler_kwargs: DictConfig, **kwargs: Any) -> None:
        options = {str(name): value for name, value in sampler_kwargs.items()}
        self._wait_for_all = options.pop("wait_for_all", False)
        super().__init__(sampler_kwargs=sampler_kwargs, **kwargs, **options)

    def _sync_metadata_from_transfer_queue(self) -> None:
        self._sync_and_check_failures()
        while self._wait_for_all and self._rollouts_running():
            time.sleep(self.poll_interval)
            self._sync_and_check_failures()
        for partition, prompts in self.prompt_global_steps.items():
            rows = self.partitions[partition]
            keys = sorted_by_data(rows, list(prompts))
            self.partitions[partition] = {key: rows[key] for key in keys}

    def _sync_and_check_failures(self) -> None:
        """Sync the metadata.

        Raises:
            RuntimeError: a rollout or its reward failed. verl only logs the failure.
        """
        super()._sync_metadata_from_transfer_queue()
        if failed := set().union(*self.failure_keys.values()):
            raise RuntimeError(
                f"rollouts of {len(failed)} prompts failed: see `Error in _run_prompt` in the log"
            )

    def _rollouts_running(self) -> bool:
        return any([*self.pending_keys.values(), *self.running_keys.values()])

    def _select_prompt_uids(
        self, partition_id: str, sampleable_keys: set[str], batch_size: int
    ) -> tuple[list[str], dict[str, dict], dict[str, int]]:
        in_order = [uid for uid in self.prompt_global_steps[partition_id] if uid in sampleable_keys]
        return super()._select_prompt_uids(partition_id, in_order, batch_size)  # type: ignore[arg-type]


class RewardReplayBuffer(ConfiguredReplayBuffer):
    """Bounds dynamic sampling, and adds metrics of the reward.

    `max_batches` is our own option: one step draws at most `max_batches` times `train_batch_size`
    prompts. Without it, a policy whose responses to a prompt all score the same would draw forever.
    """

    def __init__(
        self, *, sampler_kwargs: DictConfig, refill_fn: Callable[[int], int], **kwargs: Any
    ) -> None:
        options = {str(name): value for name, value in sampler_kwargs.items()}
        self._max_batches = options.pop("max_batches")
        self._drawn = 0
        self._draw = refill_fn
        super().__init__(sampler_kwargs=OmegaConf.create(options), refill_fn=self._refill, **kwargs)

    def sample(
        self, global_steps: int, partition_id: str, batch_size: int
    ) -> tuple[KVBatchMeta, dict[str, Any]]:
        """Return verl's batch, and verl's metrics with the batch's `reward_metrics`."""
        self._drawn = batch_size
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        if self.filter_groups_metric is not None:
            metrics = {FILTERED: 0} | metrics  # verl omits this metric if no group was filtered
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=partition_id, select_fields=["extra_fields"]
        )
        infos = [fields["reward_extra_info"] for fields in column(data["extra_fields"])]
        return batch, metrics | reward_metrics(infos)

    def _refill(self, prompts: int) -> int:
        """Draw more prompts for the current step.

        Raises:
            UserError: the step has drawn too many.
        """
        self._drawn += prompts
        if self._drawn > self._max_batches * self.train_batch_size:
            raise UserError(
                f"dynamic sampling has drawn prism.algorithm.max_batches={self._max_batches} times "
                "the prompts of a step, and in nearly all groups all responses have one "
                f"{self.filter_groups_metric}. Take easier or harder questions, more "
                "prism.rollout.samples_per_prompt, or algorithm=grpo"
            )
        return self._draw(prompts)


def sorted_by_data(keys: Iterable[str], prompts: Sequence[str]) -> list[str]:
    """Sort keys `uid_sample_turn` of rollouts by prompt, then sample, then turn.

    prompts: uids in the order of the data. Rollouts of other prompts, drawn before, come first.
    """
    position = {uid: number for number, uid in enumerate(prompts)}

    def order(key: str) -> tuple[int, int, int]:
        uid, sample, turn = key.split("_")
        return position.get(uid, -1), int(sample), int(turn)

    return sorted(keys, key=order)


def reward_metrics(infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return means and shares of what the reward function returned for each rollout.

    These are the mean of every number and the share of every format fault and, with a judge, of
    every opinion. Shares of 0 are included, so that every step has the same metrics.

    Raises:
        UserError: the rollouts have different entries.
    """
    metrics: dict[str, float] = {}
    for info in infos:
        if info.keys() != infos[0].keys():
            differing = min(info.keys() ^ infos[0].keys())
            raise UserError(
                f"prism.reward.function returned {differing!r} for some responses only; "
                "it has to return the same entries for all"
            )
    for name, value in infos[0].items():
        if not isinstance(value, str):
            metrics[f"reward/{name}"] = sum(float(info[name]) for info in infos) / len(infos)
    for fault in FormatFault:
        metrics[f"reward/fault/{fault.name.lower()}"] = _share(infos, "fault", fault)
    if "opinion" in infos[0]:
        for opinion in Opinion:
            metrics[f"reward/opinion/{opinion.name.lower()}"] = _share(infos, "opinion", opinion)
    return metrics


def _share(infos: Sequence[Mapping[str, Any]], name: str, value: str) -> float:
    return sum(info[name] == value for info in infos) / len(infos)
