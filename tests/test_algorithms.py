"""How verl behaves with each algorithm preset. test_paper_values.py pins their values."""

import asyncio
import inspect

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from verl import DataProto
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.trainer.ppo.reward import get_custom_reward_fn, load_reward_manager
from verl.utils.config import omega_conf_to_dataclass

from verl_prism.compose import compose_run

ALGORITHMS = ("grpo", "dapo", "gspo")


def compose(algorithm: str, *overrides: str) -> DictConfig:
    return compose_run(["stage=rlvr", f"algorithm={algorithm}", *overrides])[0]


def test_mini_batch_size_is_one_override():
    config = compose("gspo", "actor_rollout_ref.actor.ppo_mini_batch_size=8")
    assert config.data.train_batch_size == 16
    assert config.actor_rollout_ref.actor.ppo_mini_batch_size == 8


def clip_fraction(algorithm: str, log_ratios: list[float]) -> float:
    """Return the share of tokens of one response that verl's loss clips.

    log_ratios[T]: log pi - log pi_old of each token.
    """
    actor = omega_conf_to_dataclass(compose(algorithm).actor_rollout_ref.actor)
    ratios = torch.tensor([log_ratios])
    _, metrics = get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=torch.zeros_like(ratios),
        log_prob=ratios,
        advantages=torch.ones_like(ratios),
        response_mask=torch.ones_like(ratios),
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
    )
    return metrics["actor/pg_clipfrac"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_equal_policies_clip_nothing(algorithm):
    assert clip_fraction(algorithm, [0.0] * 4) == 0.0


def test_dapo_has_a_higher_upper_clip_than_grpo():
    ratio_1_25, ratio_1_30 = [0.22] * 4, [0.26] * 4
    assert clip_fraction("grpo", ratio_1_25) == 1.0
    assert clip_fraction("dapo", ratio_1_25) == 0.0
    assert clip_fraction("dapo", ratio_1_30) == 1.0


def test_gspo_has_one_ratio_per_response():
    """The ratio is a geometric mean, so opposite changes of two tokens cancel out."""
    assert clip_fraction("gspo", [0.5, -0.5, 0.5, -0.5]) == 0.0
    assert clip_fraction("grpo", [0.5, -0.5, 0.5, -0.5]) == 0.5
    assert clip_fraction("gspo", [0.0, 0.0, 0.0, 4 * 4.1e-4]) == 1.0


def test_loss_aggregation_is_over_tokens_or_over_responses():
    """A response of one token with loss -2, and one of three tokens with loss -1."""
    losses = {}
    for algorithm in ALGORITHMS:
        actor = omega_conf_to_dataclass(compose(algorithm).actor_rollout_ref.actor)
        mask = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
        loss, _ = get_policy_loss_fn(actor.policy_loss.loss_mode)(
            old_log_prob=torch.zeros(2, 3),
            log_prob=torch.zeros(2, 3),
            advantages=torch.tensor([[2.0], [1.0]]) * mask,
            response_mask=mask,
            loss_agg_mode=actor.loss_agg_mode,
            config=actor,
        )
        losses[algorithm] = loss.item()
    assert losses == pytest.approx({"grpo": -5 / 4, "dapo": -5 / 4, "gspo": -3 / 2})


RIGHT = "<caption>A 3 and a 5.</caption><think>3 + 5 = 8.</think><answer>8</answer>"


def test_verl_loads_our_reward_function_as_a_coroutine():
    function = get_custom_reward_fn(compose("grpo"))
    assert inspect.iscoroutinefunction(function)
    reward = function(
        data_source="digits", solution_str=RIGHT, ground_truth="8", extra_info={"num_turns": 2}
    )
    assert asyncio.run(reward) == {"score": 1.0, "acc": 1.0, "format": 1.0, "fault": ""}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("padding", [0, 20])
def test_only_dapo_penalizes_long_responses(algorithm, padding, tokenizer, dense_folder):
    """The penalty grows from 0 to `penalty` over the last `buffer_tokens`, padding excluded."""
    ids = tokenizer.encode(RIGHT)
    limit, buffer = len(ids) + 5, 20
    settings = [f"prism.data.max_response_tokens={limit}", f"prism.policy={dense_folder}"]
    config = compose(algorithm, *settings, f"prism.algorithm.overlong.buffer_tokens={buffer}")

    async def reward() -> dict:
        return await load_reward_manager(config, tokenizer).run_single(
            rollout(ids, padding, tokenizer.pad_token_id)
        )

    result = asyncio.run(reward())
    expected = 1.0 - (buffer - 5) / buffer if algorithm == "dapo" else 1.0
    assert float(result["reward_score"]) == pytest.approx(expected)
    assert result["reward_extra_info"]["acc"] == result["reward_extra_info"]["score"] == 1.0


def rollout(ids: list[int], padding: int, pad: int) -> DataProto:
    tensors = {
        "responses": torch.tensor([ids + [pad] * padding]),
        "attention_mask": torch.tensor([[1] * (3 + len(ids)) + [0] * padding]),
    }
    rows = {"data_source": "digits", "reward_model": {"ground_truth": "8"}, "extra_info": {}}
    return DataProto.from_dict(
        tensors, non_tensors={key: np.array([row], dtype=object) for key, row in rows.items()}
    )


def test_opd_whitebox_is_grpo_with_the_distillation_reward_of_verl():
    """The only reward comes from the teacher's log-probabilities."""
    teacher = "prism.algorithm.distillation.teacher=/models/teacher"
    config = compose("opd_whitebox", teacher, "prism.hardware.ray_gpus=2")
    distillation = omega_conf_to_dataclass(config.distillation)
    (teacher,) = distillation.teacher_models.values()
    assert (teacher.model_path, teacher.world_size) == ("/models/teacher", 1)
    loss = distillation.distillation_loss
    assert (loss.loss_mode, loss.use_policy_gradient, loss.use_task_rewards) == ("k1", True, False)
    grpo = compose("grpo")
    assert config.actor_rollout_ref.actor == grpo.actor_rollout_ref.actor


def test_verl_refuses_a_teacher_pool_that_tensor_parallelism_does_not_divide():
    config = compose(
        "opd_whitebox",
        "hardware=cuda",
        "prism.algorithm.distillation.devices=3",
        "prism.hardware.tensor_parallel_size=2",
    )
    with pytest.raises(Exception, match="must divide the distillation"):
        omega_conf_to_dataclass(config.distillation)
