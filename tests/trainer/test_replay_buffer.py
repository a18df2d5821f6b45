"""What our replay buffers add to verl's: options; for stage 3, metrics of the reward and a bound on draws."""

import inspect

import pytest
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_prism.errors import UserError
from verl_prism.response import FormatFault
from verl_prism.rewards.opinion import Opinion
from verl_prism.rewards.score import compute_score
from verl_prism.trainer.replay_buffer import (
    ConfiguredReplayBuffer,
    RewardReplayBuffer,
    reward_metrics,
)

RIGHT = "<caption>A 3 and a 5.</caption><think>3 + 5 = 8.</think><answer>8</answer>"


def configured_buffer(**sampler_kwargs):
    return ConfiguredReplayBuffer(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create(sampler_kwargs),
        refill_fn=lambda count: None,
    )


def test_options_come_from_the_config():
    options = dict(
        poll_interval=0.1, filter_groups_metric="acc", train_batch_size=4, gen_batch_size=1
    )
    buffer = configured_buffer(**options)
    assert {name: getattr(buffer, name) for name in options} == options


def test_without_options_it_is_verls_buffer():
    assert configured_buffer().poll_interval == 2.0


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="pol_interval"):
        configured_buffer(pol_interval=0.1)


def make_buffer(drawn: list[int], **options) -> RewardReplayBuffer:
    options = {
        "train_batch_size": 4,
        "max_batches": 3,
        "filter_groups_metric": "acc",
        "gen_batch_size": 1,
    } | options
    return RewardReplayBuffer(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create(options),
        refill_fn=drawn.append,
    )


def test_metrics_are_means_of_numbers_and_shares_of_faults():
    infos = [
        compute_score("digits", response, "8")
        for response in (RIGHT, RIGHT.replace(">8<", ">9<"), "8", "")
    ]
    metrics = reward_metrics(infos)
    assert metrics["reward/acc"] == 0.25 and metrics["reward/format"] == 0.5
    assert metrics["reward/score"] == pytest.approx(0.3)
    assert metrics["reward/fault/missing"] == 0.5
    faults = {name: value for name, value in metrics.items() if name.startswith("reward/fault/")}
    assert set(faults) == {f"reward/fault/{fault.name.lower()}" for fault in FormatFault}
    assert sum(faults.values()) == 1 - metrics["reward/format"]


def test_a_judge_is_counted_where_there_is_one():
    info = compute_score("digits", RIGHT, "9")
    infos = [
        info | {"judged": 1.0, "opinion": str(Opinion.RIGHT)},
        info | {"judged": 0.0, "opinion": str(Opinion.DOWN)},
    ]
    metrics = reward_metrics(infos)
    assert (
        metrics["reward/judged"]
        == metrics["reward/opinion/down"]
        == metrics["reward/opinion/right"]
        == 0.5
    )
    assert metrics["reward/opinion/over_budget"] == 0.0
    assert not any("opinion" in name for name in reward_metrics([info]))


def test_a_sampled_batch_comes_with_its_metrics(monkeypatch):
    """verl's sampling stands in for a running queue: what is read is what the queue gives for the batch's keys."""
    info = compute_score("digits", RIGHT, "8")
    rows: TensorDict = list_of_dict_to_tensordict(
        [{"extra_fields": {"reward_extra_info": info}}] * 2
    )
    batch = KVBatchMeta(partition_id="train", keys=["a_0_0", "a_1_0"], tags=[{}, {}])
    monkeypatch.setattr(
        ReplayBuffer, "sample", lambda *_: (batch, {"training/filter_groups/evicted_samples": 3})
    )
    monkeypatch.setattr(tq, "kv_batch_get", lambda keys, partition_id, select_fields: rows)
    sampled, metrics = make_buffer([]).sample(global_steps=1, partition_id="train", batch_size=1)
    assert sampled is batch
    assert metrics["training/filter_groups/evicted_samples"] == 3 and metrics["reward/acc"] == 1.0


def test_dynamic_sampling_draws_no_more_than_allowed():
    """4 prompts to start with and 8 more are the 3 times 4 that are allowed."""
    drawn: list[int] = []
    buffer = make_buffer(drawn)
    buffer._drawn = 4
    buffer.refill_fn(6)
    buffer.refill_fn(2)
    with pytest.raises(UserError, match=r"prism\.algorithm\.max_batches=3 times .* have one acc\."):
        buffer.refill_fn(1)
    assert drawn == [6, 2]


def test_a_failed_rollout_stops_the_run(monkeypatch):
    """verl would train on what is left of the group, or on nothing."""
    tags = {"a": {"is_prompt": True, "status": "finished", "global_steps": 1}}
    monkeypatch.setattr(tq, "kv_list", lambda: {"train": tags})
    buffer = make_buffer([])
    buffer._sync_metadata_from_transfer_queue()
    tags["b"] = {"is_prompt": True, "status": "failure", "global_steps": 1}
    with pytest.raises(RuntimeError, match="rollouts of 1 prompts failed"):
        buffer._sync_metadata_from_transfer_queue()


def test_what_is_overridden_is_there_in_verl():
    assert list(inspect.signature(ReplayBuffer.sample).parameters) == [
        "self",
        "global_steps",
        "partition_id",
        "batch_size",
    ]
    assert "self._sync_metadata_from_transfer_queue()" in inspect.getsource(ReplayBuffer.sample)
    assert "self.refill_fn(" in inspect.getsource(ReplayBuffer.sample)
    assert "metrics.update(off_policy_metrics)" in inspect.getsource(PPOTrainer._step_once)
