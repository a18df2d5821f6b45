"""What our replay buffers add to verl's: options, metrics of the reward, and a bound on draws."""

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
    sorted_by_data,
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


def reward_buffer(drawn: list[int]) -> RewardReplayBuffer:
    options = {
        "train_batch_size": 4,
        "max_batches": 3,
        "filter_groups_metric": "acc",
        "gen_batch_size": 1,
    }
    return RewardReplayBuffer(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create(options),
        refill_fn=drawn.append,
    )


def test_options_come_from_the_config():
    options = {
        "poll_interval": 0.1,
        "filter_groups_metric": "acc",
        "train_batch_size": 4,
        "gen_batch_size": 1,
    }
    buffer = configured_buffer(**options)
    assert {name: getattr(buffer, name) for name in options} == options


def test_without_options_it_is_verls_buffer():
    assert configured_buffer().poll_interval == 2.0


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="pol_interval"):
        configured_buffer(pol_interval=0.1)


def test_rollouts_are_sorted_by_prompt_sample_and_turn():
    keys = ["b_0_1", "b_0_0", "a_10_0", "a_9_0", "earlier_0_0"]
    assert sorted_by_data(keys, ["a", "b"]) == [
        "earlier_0_0",
        "a_9_0",
        "a_10_0",
        "b_0_0",
        "b_0_1",
    ]


def test_metrics_are_means_of_numbers_and_shares_of_faults():
    texts = (RIGHT, RIGHT.replace(">8<", ">9<"), "8", "")
    metrics = reward_metrics([compute_score("digits", text, "8") for text in texts])
    assert metrics["reward/acc"] == 0.25
    assert metrics["reward/format"] == 0.5
    assert metrics["reward/score"] == pytest.approx(0.3)
    assert metrics["reward/fault/missing"] == 0.5
    faults = {name: value for name, value in metrics.items() if name.startswith("reward/fault/")}
    assert set(faults) == {f"reward/fault/{fault.name.lower()}" for fault in FormatFault}
    assert sum(faults.values()) == 1 - metrics["reward/format"]


def test_opinions_are_counted_only_with_a_judge():
    info = compute_score("digits", RIGHT, "9")
    infos = [
        info | {"judged": 1.0, "opinion": str(Opinion.RIGHT)},
        info | {"judged": 0.0, "opinion": str(Opinion.DOWN)},
    ]
    metrics = reward_metrics(infos)
    assert metrics["reward/judged"] == 0.5
    assert metrics["reward/opinion/down"] == 0.5
    assert metrics["reward/opinion/right"] == 0.5
    assert metrics["reward/opinion/over_budget"] == 0.0
    assert not any("opinion" in name for name in reward_metrics([info]))


def test_a_sampled_batch_comes_with_its_metrics(monkeypatch):
    """verl's sampling is replaced; the rows are what TransferQueue returns for the batch's keys."""
    info = compute_score("digits", RIGHT, "8")
    rows: TensorDict = list_of_dict_to_tensordict(
        [{"extra_fields": {"reward_extra_info": info}}] * 2
    )
    batch = KVBatchMeta(partition_id="train", keys=["a_0_0", "a_1_0"], tags=[{}, {}])
    evicted = {"training/filter_groups/evicted_samples": 3}
    monkeypatch.setattr(ReplayBuffer, "sample", lambda *_: (batch, evicted))
    monkeypatch.setattr(tq, "kv_batch_get", lambda keys, partition_id, select_fields: rows)
    sampled, metrics = reward_buffer([]).sample(global_steps=1, partition_id="train", batch_size=1)
    assert sampled is batch
    assert metrics["training/filter_groups/evicted_samples"] == 3
    assert metrics["reward/acc"] == 1.0


def test_dynamic_sampling_draws_no_more_than_allowed():
    """4 prompts at first and 8 more make 3 times 4, which is the limit."""
    drawn: list[int] = []
    buffer = reward_buffer(drawn)
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
    buffer = reward_buffer([])
    buffer._sync_metadata_from_transfer_queue()
    tags["b"] = {"is_prompt": True, "status": "failure", "global_steps": 1}
    with pytest.raises(RuntimeError, match="rollouts of 1 prompts failed"):
        buffer._sync_metadata_from_transfer_queue()


def test_verl_still_calls_what_we_override():
    parameters = list(inspect.signature(ReplayBuffer.sample).parameters)
    assert parameters == ["self", "global_steps", "partition_id", "batch_size"]
    source = inspect.getsource(ReplayBuffer.sample)
    assert "self._sync_metadata_from_transfer_queue()" in source
    assert "self.refill_fn(" in source
    assert "metrics.update(off_policy_metrics)" in inspect.getsource(PPOTrainer._step_once)
