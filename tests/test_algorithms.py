"""The presets of stage rlvr: the paper's values in verl's own keys, and what verl makes of them."""

import asyncio
import inspect

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.trainer.ppo.reward import get_custom_reward_fn, load_reward_manager
from verl.utils.config import omega_conf_to_dataclass

from verl_prism.compose import compose_run

SAME = {
    "data.train_batch_size": 32,
    "data.max_prompt_length": 2048,
    "data.max_response_length": 8192,
    "data.shuffle": True,
    "actor_rollout_ref.rollout.n": 16,
    "actor_rollout_ref.rollout.temperature": 1.0,
    "actor_rollout_ref.rollout.top_p": 1.0,
    "actor_rollout_ref.rollout.gpu_memory_utilization": 0.6,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 32,  # one update per batch
    "actor_rollout_ref.actor.ppo_epochs": 1,
    "actor_rollout_ref.actor.use_dynamic_bsz": True,
    "actor_rollout_ref.actor.use_kl_loss": False,
    "actor_rollout_ref.actor.entropy_coeff": 0,
    "actor_rollout_ref.actor.optim.lr": 1e-6,
    "actor_rollout_ref.actor.optim.lr_scheduler_type": "constant",
    "actor_rollout_ref.actor.optim.betas": [0.9, 0.999],
    "actor_rollout_ref.actor.optim.clip_grad": 1.0,
    "actor_rollout_ref.model.enable_gradient_checkpointing": True,
    "algorithm.adv_estimator": "grpo",
    "algorithm.norm_adv_by_std_in_grpo": True,
    "algorithm.use_kl_in_reward": False,
    "trainer.total_training_steps": 1500,
    "trainer.v1.trainer_mode": "prism",
    "reward.reward_kwargs.max_resp_len": 8192,
    "reward.custom_reward_function.reward_kwargs.accuracy_weight": 0.8,
    "reward.custom_reward_function.reward_kwargs.format_weight": 0.2,
    "distillation.enabled": False,
}
SAMPLER = "trainer.v1.sampler.sampler_kwargs"
OVERLONG = "reward.reward_kwargs.overlong_buffer_cfg"
DIFFERENT = {
    #                                                          GRPO          DAPO          GSPO
    "actor_rollout_ref.actor.policy_loss.loss_mode":          ("vanilla",    "vanilla",    "gspo"),
    "actor_rollout_ref.actor.loss_agg_mode":                  ("token-mean", "token-mean", "seq-mean-token-mean"),
    "actor_rollout_ref.actor.clip_ratio":                     (0.2,          0.2,          3e-4),
    "actor_rollout_ref.actor.clip_ratio_low":                 (0.2,          0.2,          3e-4),
    "actor_rollout_ref.actor.clip_ratio_high":                (0.2,          0.28,         4e-4),
    "actor_rollout_ref.actor.clip_ratio_c":                   (3.0,          10.0,         3.0),  # none in GSPO's loss
    "actor_rollout_ref.actor.optim.weight_decay":             (0.01,         0.1,          0.1),
    "actor_rollout_ref.actor.optim.lr_warmup_steps":          (0,            10,           0),
    "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio":    (0.0,          0.0,          0.05),
    "reward.reward_manager.name":                             ("naive",      "dapo",       "dapo"),
    f"{OVERLONG}.enable":                                     (False,        True,         False),
    f"{OVERLONG}.len":                                        (0,            4096,         0),
    f"{OVERLONG}.penalty_factor":                             (0.0,          1.0,          0.0),
    "algorithm.filter_groups.enable":                         (False,        True,         False),
    "algorithm.filter_groups.metric":                         (None,         "acc",        None),
    f"{SAMPLER}.filter_groups_metric":                        (None,         "acc",        None),
    f"{SAMPLER}.max_inflight_gen_batches":                    (1,            3,            1),    # times 32: 96 prompts
    f"{SAMPLER}.max_batches":                                 (1,            30,           1),    # 10 times 96 prompts
    "actor_rollout_ref.rollout.val_kwargs.temperature":       (0.0,          1.0,          1.0),
    "actor_rollout_ref.rollout.val_kwargs.top_p":             (1.0,          0.7,          0.7),
    "actor_rollout_ref.rollout.val_kwargs.top_k":             (-1,           -1,           -1),
}  # fmt: skip
ALGORITHMS = ("grpo", "dapo", "gspo")


def compose(algorithm: str, *overrides: str) -> DictConfig:
    return compose_run(["stage=rlvr", f"algorithm={algorithm}", *overrides])[0]


@pytest.fixture(scope="module", params=ALGORITHMS)
def preset(request) -> tuple[str, DictConfig]:
    return request.param, compose(request.param, "model=qwen3_vl_4b", "hardware=cuda")


def test_a_preset_holds_the_papers_values(preset):
    name, config = preset
    wanted = SAME | {key: values[ALGORITHMS.index(name)] for key, values in DIFFERENT.items()}
    assert {key: plain(config, key) for key in wanted} == wanted


def plain(config: DictConfig, key: str) -> object:
    value = OmegaConf.select(config, key, throw_on_missing=True)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def test_a_smaller_mini_batch_is_one_override():
    config = compose("gspo", "actor_rollout_ref.actor.ppo_mini_batch_size=8")
    assert config.data.train_batch_size / config.actor_rollout_ref.actor.ppo_mini_batch_size == 2  # digits: 16 prompts


def clip_fraction(algorithm: str, log_ratios: list[float]) -> float:
    """The share of tokens of one response that verl's own loss clips, from log pi - log pi_old."""
    actor = omega_conf_to_dataclass(compose(algorithm).actor_rollout_ref.actor)
    ratios = torch.tensor([log_ratios])
    _, metrics = get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=torch.zeros_like(ratios), log_prob=ratios, advantages=torch.ones_like(ratios),
        response_mask=torch.ones_like(ratios), loss_agg_mode=actor.loss_agg_mode, config=actor,
    )  # fmt: skip
    return metrics["actor/pg_clipfrac"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_where_policy_and_sampler_agree_nothing_is_clipped(algorithm):
    assert clip_fraction(algorithm, [0.0] * 4) == 0.0


def test_dapo_lets_a_token_rise_further_than_grpo():
    assert (clip_fraction("grpo", [0.22] * 4), clip_fraction("dapo", [0.22] * 4)) == (1.0, 0.0)  # ratio 1.25
    assert clip_fraction("dapo", [0.26] * 4) == 1.0  # ratio 1.30


def test_gspo_has_one_ratio_per_response():
    """Its geometric mean: what goes up at one token and down at the next is no change."""
    assert clip_fraction("gspo", [0.5, -0.5, 0.5, -0.5]) == 0.0
    assert clip_fraction("grpo", [0.5, -0.5, 0.5, -0.5]) == 0.5
    assert clip_fraction("gspo", [0.0, 0.0, 0.0, 4 * 4.1e-4]) == 1.0


def test_the_aggregation_weighs_responses_or_tokens():
    """A short response of loss -2 and one three times as long of loss -1."""
    losses = {}
    for algorithm in ALGORITHMS:
        actor = omega_conf_to_dataclass(compose(algorithm).actor_rollout_ref.actor)
        mask = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
        loss, _ = get_policy_loss_fn(actor.policy_loss.loss_mode)(
            old_log_prob=torch.zeros(2, 3), log_prob=torch.zeros(2, 3), advantages=torch.tensor([[2.0], [1.0]]) * mask,
            response_mask=mask, loss_agg_mode=actor.loss_agg_mode, config=actor,
        )  # fmt: skip
        losses[algorithm] = loss.item()
    assert losses == pytest.approx({"grpo": -5 / 4, "dapo": -5 / 4, "gspo": -3 / 2})


RIGHT = "<caption>A 3 and a 5.</caption><think>3 + 5 = 8.</think><answer>8</answer>"


def test_verl_finds_the_reward_function_and_awaits_it():
    function = get_custom_reward_fn(compose("grpo"))
    assert inspect.iscoroutinefunction(function)
    reward = function(data_source="digits", solution_str=RIGHT, ground_truth="8", extra_info={"num_turns": 2})
    assert asyncio.run(reward) == {"score": 1.0, "acc": 1.0, "format": 1.0, "fault": ""}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("padding", [0, 20])
def test_dapo_alone_takes_a_penalty_off_long_responses(algorithm, padding, tokenizer, dense_folder):
    """Over the last `buffer_tokens` of the allowed length it grows from 0 to `penalty`; padding does not count."""
    ids = tokenizer.encode(RIGHT)
    limit, buffer = len(ids) + 5, 20
    settings = [f"prism.data.max_response_tokens={limit}", f"prism.policy={dense_folder}"]
    config = compose(algorithm, *settings, f"prism.algorithm.overlong.buffer_tokens={buffer}")

    async def reward() -> dict:
        return await load_reward_manager(config, tokenizer).run_single(rollout(ids, padding, tokenizer.pad_token_id))

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
    return DataProto.from_dict(tensors, non_tensors={key: np.array([row], dtype=object) for key, row in rows.items()})


def test_distillation_is_verls_own_by_config():
    """The white-box baseline: GRPO's settings, rewarded with a teacher's log-probabilities and nothing else."""
    config = compose("opd_whitebox", "prism.algorithm.distillation.teacher=/models/teacher")
    distillation = omega_conf_to_dataclass(config.distillation)
    (teacher,) = distillation.teacher_models.values()
    assert (teacher.model_path, teacher.world_size) == ("/models/teacher", 1)
    loss = distillation.distillation_loss
    assert (loss.loss_mode, loss.use_policy_gradient, loss.use_task_rewards) == ("k1", True, False)
    grpo = compose("grpo")
    assert config.actor_rollout_ref.actor == grpo.actor_rollout_ref.actor


def test_the_teacher_does_not_outlive_a_short_pool():
    """verl itself refuses a pool that the teacher does not fill."""
    config = compose("opd_whitebox", "hardware=cuda", "prism.algorithm.distillation.devices=3",
                     "prism.hardware.engine_tensor_parallel=2")  # fmt: skip
    with pytest.raises(Exception, match="must divide the distillation"):
        omega_conf_to_dataclass(config.distillation)
