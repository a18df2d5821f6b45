"""verl's replay buffer with the options of its constructor in the config, selected by `trainer.v1.sampler`.

None trains on what failed: verl takes a group whose rollouts failed for a smaller group. That of stage 3 also says what
the rewards of each batch are made of: verl averages what a reward function leaves beside the reward in its validation
alone.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
    """Takes `trainer.v1.sampler.sampler_kwargs` as arguments of verl's own buffer.

    verl polls for finished rollouts every 2 s, which on a tiny policy is most of a step: `{poll_interval: 0.1}` waits
    less. verl does not pass the options of group filtering to a buffer chosen by config, so DAPO names them here too.

    Rollouts come in the order of the data; verl's come in that in which they were finished. With `wait_for_all`, an
    option of ours, nothing is decided while a rollout is under way: dynamic sampling would go by which was first.
    """

    def __init__(self, *, sampler_kwargs: DictConfig, **kwargs: Any):
        options = {str(name): value for name, value in sampler_kwargs.items()}
        self._wait_for_all = options.pop("wait_for_all", False)
        super().__init__(sampler_kwargs=sampler_kwargs, **kwargs, **options)

    def _sync_metadata_from_transfer_queue(self) -> None:
        self._read()
        while self._wait_for_all and any(
            [*self.pending_keys.values(), *self.running_keys.values()]
        ):
            time.sleep(self.poll_interval)
            self._read()
        for partition, prompts in self.prompt_global_steps.items():
            places = {uid: place for place, uid in enumerate(prompts)}
            rows = self.partitions[partition].items()
            self.partitions[partition] = dict(sorted(rows, key=partial(_place, places)))

    def _read(self) -> None:
        """Also notices a rollout that failed, its reward included; verl logs why and goes on without it."""
        super()._sync_metadata_from_transfer_queue()
        if failed := set().union(*self.failure_keys.values()):
            raise RuntimeError(
                f"rollouts of {len(failed)} prompts failed: in the log, below `Error in _run_prompt`"
            )

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int):
        in_order = [uid for uid in self.prompt_global_steps[partition_id] if uid in sampleable_keys]
        return super()._select_prompt_uids(partition_id, in_order, batch_size)  # type: ignore[arg-type]


class RewardReplayBuffer(ConfiguredReplayBuffer):
    """Takes one option more than verl's: with dynamic sampling, `max_batches` times `train_batch_size` prompts at most
    are drawn for one step, lest a policy that answers everything alike draws for ever."""

    def __init__(
        self, *, sampler_kwargs: DictConfig, refill_fn: Callable[[int], int], **kwargs: Any
    ):
        options = {str(name): value for name, value in sampler_kwargs.items()}
        self._limit = options.pop("max_batches") * options["train_batch_size"]
        self._drawn = 0
        self._draw = refill_fn
        super().__init__(sampler_kwargs=OmegaConf.create(options), refill_fn=self._refill, **kwargs)

    def sample(
        self, global_steps: int, partition_id: str, batch_size: int
    ) -> tuple[KVBatchMeta, dict]:
        """verl's batch and metrics, and `reward_metrics` of the batch."""
        self._drawn = batch_size
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        if self.filter_groups_metric is not None:
            metrics = {FILTERED: 0} | metrics  # verl has it only where there was one
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=partition_id, select_fields=["extra_fields"]
        )
        infos = [fields["reward_extra_info"] for fields in column(data["extra_fields"])]
        return batch, metrics | reward_metrics(infos)

    def _refill(self, prompts: int) -> int:
        self._drawn += prompts
        if self._drawn > self._limit:
            raise UserError(
                f"dynamic sampling has drawn prism.algorithm.max_batches={self._limit // self.train_batch_size} times "
                f"the prompts of a step, and in nearly all groups all responses have one {self.filter_groups_metric}. "
                "Take easier or harder questions, more prism.rollout.samples_per_prompt, or algorithm=grpo"
            )
        return self._draw(prompts)


def _place(prompts: Mapping[str, int], row: tuple[str, Any]) -> tuple[int, int, int]:
    """Of a rollout: its prompt's place, its number among the prompt's, its number in the conversation.

    One whose prompt was handed out before stands first.
    """
    uid, session, number = row[0].split("_")
    return prompts.get(uid, -1), int(session), int(number)


def reward_metrics(infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of what the reward left for each rollout: the mean of every number, the share of every fault and opinion.

    The share of a fault that did not occur is 0, so that every step has the same metrics.
    """
    numbers = [name for name, value in infos[0].items() if not isinstance(value, str)]
    means = {
        f"reward/{name}": sum(float(info[name]) for info in infos) / len(infos) for name in numbers
    }
    shares = {
        f"reward/fault/{fault.name.lower()}": _share(infos, "fault", fault) for fault in FormatFault
    }
    if "opinion" in infos[0]:
        shares |= {
            f"reward/opinion/{each.name.lower()}": _share(infos, "opinion", each)
            for each in Opinion
        }
    return means | shares


def _share(infos: Sequence[Mapping[str, Any]], name: str, value: str) -> float:
    return sum(info[name] == value for info in infos) / len(infos)
