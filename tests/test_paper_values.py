"""The paper's settings, as keys of verl, for the two models and the machine that the paper used.

Values that the paper does not state come from its published scripts. DIFFERENT_ON_PURPOSE lists
every setting that we change, with the reason; the YAML gives it next to the key.
"""

import functools
import math

import pytest
from omegaconf import DictConfig, OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from verl_prism.alignment.worker import training_worker_config
from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.response import View
from verl_prism.stages.warmup_training import LR_WARMUP_SHARE
from verl_prism.trainer.validate import check_with_verl

MODELS = ("qwen3_vl_4b", "qwen3_vl_8b")
ALGORITHMS = ("grpo", "dapo", "gspo")
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
SAMPLER = "trainer.v1.sampler.sampler_kwargs"
OVERLONG = "reward.reward_kwargs.overlong_buffer_cfg"

SFT = {
    "optim.optimizer": "AdamW",
    "optim.lr": 1e-5,
    "optim.lr_scheduler_type": "cosine",
    "optim.lr_warmup_steps": 0,  # so the ratio applies
    "optim.lr_warmup_steps_ratio": 0.1,
    "optim.min_lr_ratio": 0.0,
    "data.train_batch_size": 16,  # 2 per device, on 8 devices
    "data.max_length": 8192,
    "engine.model_dtype": "fp32",
    "engine.mixed_precision.param_dtype": "bfloat16",
    "model.enable_gradient_checkpointing": True,
    "model.lora_rank": 0,
    "trainer.n_gpus_per_node": 8,
    "trainer.nnodes": 1,
    "trainer.total_training_steps": 85625,  # one epoch
}
PPO = {
    f"{ACTOR}.ppo_epochs": 1,
    f"{ACTOR}.use_dynamic_bsz": True,
    f"{ACTOR}.use_kl_loss": False,
    f"{ACTOR}.entropy_coeff": 0,
    f"{ACTOR}.grad_clip": 1.0,
    f"{ACTOR}.optim.optimizer": "AdamW",
    f"{ACTOR}.optim.lr": 1e-6,
    f"{ACTOR}.optim.lr_scheduler_type": "constant",
    f"{ACTOR}.optim.betas": [0.9, 0.999],
    f"{ACTOR}.optim.clip_grad": 1.0,
    f"{ACTOR}.fsdp_config.model_dtype": "fp32",
    f"{ACTOR}.fsdp_config.mixed_precision.param_dtype": "bfloat16",
    f"{ACTOR}.fsdp_config.param_offload": True,
    f"{ACTOR}.fsdp_config.optimizer_offload": True,
    f"{ROLLOUT}.name": "vllm",
    f"{ROLLOUT}.n": 16,
    f"{ROLLOUT}.temperature": 1.0,
    f"{ROLLOUT}.top_p": 1.0,
    f"{ROLLOUT}.tensor_model_parallel_size": 1,
    f"{ROLLOUT}.max_num_batched_tokens": 8192,
    f"{ROLLOUT}.enforce_eager": False,
    f"{ROLLOUT}.free_cache_engine": True,
    "actor_rollout_ref.model.enable_gradient_checkpointing": True,
    "actor_rollout_ref.model.use_remove_padding": True,
    "actor_rollout_ref.model.lora_rank": 0,
    "data.max_prompt_length": 2048,
    "data.shuffle": True,
    "data.image_patch_size": 16,
    "algorithm.use_kl_in_reward": False,
    "trainer.balance_batch": True,
    "trainer.critic_warmup": 0,
    "trainer.n_gpus_per_node": 8,
    "trainer.nnodes": 1,
}
ALIGN = {
    "data.train_batch_size": 4,
    "data.max_response_length": 6144,
    f"{ACTOR}.ppo_mini_batch_size": 4,  # one update per step
    f"{ACTOR}.ppo_max_token_len_per_gpu": 8192,
    f"{ROLLOUT}.log_prob_max_token_len_per_gpu": 8192,
    f"{ACTOR}.clip_ratio": 0.2,
    f"{ACTOR}.clip_ratio_low": 0.2,
    f"{ACTOR}.clip_ratio_high": 0.2,
    f"{ACTOR}.clip_ratio_c": 3.0,
    f"{ACTOR}.loss_agg_mode": "token-mean",
    f"{ACTOR}.optim.weight_decay": 0.01,
    f"{ACTOR}.optim.lr_warmup_steps": 0,
    f"{ACTOR}.optim.lr_warmup_steps_ratio": 0.0,
    "algorithm.adv_estimator": "prism_alignment",
    "trainer.total_training_steps": 500,
    "trainer.v1.trainer_mode": "adversarial_opd",
    "prism.align.perception_weight": 0.5,
    "prism.align.reasoning_weight": 0.5,
    "prism.align.format_penalty": 1.5,
    "prism.discriminator.score_regularization": 0.001,
    "prism.discriminator.micro_batch_tokens": 114688,  # published: 8192, the actor's
    "prism.discriminator.updates_per_step": 1,
}
WARMUP = {
    "prism.discriminator.lr": 1e-5,
    "prism.discriminator.weight_decay": 0.01,
    "prism.discriminator.grad_clip": 1.0,
    "prism.discriminator.upcycle.experts": 4,
    "prism.discriminator.upcycle.experts_per_token": 2,
    "prism.warmup.pairs_per_step": 64,  # responses, of two pairs each
    "prism.warmup.mismatched_teachers": 0,
    "prism.hardware.max_tokens_per_device": 8192,
    "prism.hardware.devices_per_node": 8,
    "prism.hardware.dtype": "bfloat16",
    "prism.hardware.gradient_checkpointing": True,
}
RLVR = {
    "data.train_batch_size": 32,
    "data.max_response_length": 8192,
    f"{ROLLOUT}.gpu_memory_utilization": 0.6,
    f"{ACTOR}.ppo_mini_batch_size": 32,  # one update per batch
    "algorithm.adv_estimator": "grpo",
    "algorithm.norm_adv_by_std_in_grpo": True,
    "trainer.total_training_steps": 1500,
    "trainer.save_freq": 120,
    "trainer.v1.trainer_mode": "prism",
    "reward.reward_kwargs.max_resp_len": 8192,
    "reward.custom_reward_function.reward_kwargs.accuracy_weight": 0.8,
    "reward.custom_reward_function.reward_kwargs.format_weight": 0.2,
    "distillation.enabled": False,
}
RLVR_BY_ALGORITHM = {  # (GRPO, DAPO, GSPO)
    f"{ACTOR}.policy_loss.loss_mode": ("vanilla", "vanilla", "gspo"),
    f"{ACTOR}.loss_agg_mode": ("token-mean", "token-mean", "seq-mean-token-mean"),
    f"{ACTOR}.clip_ratio": (0.2, 0.2, 3e-4),
    f"{ACTOR}.clip_ratio_low": (0.2, 0.2, 3e-4),
    f"{ACTOR}.clip_ratio_high": (0.2, 0.28, 4e-4),
    f"{ACTOR}.clip_ratio_c": (3.0, 10.0, 3.0),  # unused in the loss of GSPO
    f"{ACTOR}.optim.weight_decay": (0.01, 0.1, 0.1),
    f"{ACTOR}.optim.lr_warmup_steps": (0, 10, 0),
    f"{ACTOR}.optim.lr_warmup_steps_ratio": (0.0, 0.0, 0.05),
    "reward.reward_manager.name": ("naive", "dapo", "dapo"),
    f"{OVERLONG}.enable": (False, True, False),
    f"{OVERLONG}.len": (0, 4096, 0),
    f"{OVERLONG}.penalty_factor": (0.0, 1.0, 0.0),
    "algorithm.filter_groups.enable": (False, True, False),
    "algorithm.filter_groups.metric": (None, "acc", None),
    f"{SAMPLER}.filter_groups_metric": (None, "acc", None),
    f"{SAMPLER}.max_inflight_gen_batches": (1, 3, 1),  # times 32: 96 prompts
    f"{SAMPLER}.max_batches": (1, 30, 1),  # 10 times 96 prompts
    f"{ROLLOUT}.val_kwargs.temperature": (0.0, 1.0, 1.0),
    f"{ROLLOUT}.val_kwargs.top_p": (1.0, 0.7, 0.7),
    f"{ROLLOUT}.val_kwargs.top_k": (-1, -1, -1),
}
RESOURCES_ONLY = "affects only memory and time, so prism.hardware decides"
NOT_SILENT = "a run stops instead of truncating or dropping data silently"
DIFFERENT_ON_PURPOSE = [
    # stage, key, the paper's value, our value, reason
    ("sft", "data.truncation", "right", "error", NOT_SILENT),
    (
        "align",
        f"{ROLLOUT}.gpu_memory_utilization",
        0.25,
        0.4,
        "the weights of an 8B model take 0.22 of 80 GB",
    ),
    ("align", "trainer.save_freq", 500, 100, "a crash at step 499 would lose everything"),
    ("align", "trainer.test_freq", 8, -1, "stage=eval measures it with intervals"),
    ("rlvr", "trainer.test_freq", 6, -1, "stage=eval measures it with intervals"),
    ("align", "prism.discriminator.balance_coef", 0.0, 0.01, "the experts collapse without it"),
    (
        "warmup",
        "prism.discriminator.upcycle.routing",
        "token",
        "dedicated",
        "perception experts see only perception, reasoning experts only reasoning",
    ),
    (
        "warmup",
        "prism.discriminator.upcycle.noise",
        0.01,
        0.0,
        "the copies compute what the dense model computes",
    ),
    ("rlvr", f"{ACTOR}.ppo_max_token_len_per_gpu", 20480, 10240, f"only in GSPO: {RESOURCES_ONLY}"),
    (
        "rlvr",
        f"{ROLLOUT}.log_prob_max_token_len_per_gpu",
        30720,
        10240,
        f"only in GSPO: {RESOURCES_ONLY}",
    ),
    ("rlvr", f"{ACTOR}.entropy_checkpointing", True, False, f"only in GSPO: {RESOURCES_ONLY}"),
]
DIFFERENT_IN_RL = [
    # key, the paper's value, our value, reason
    (f"{ACTOR}.strategy", "fsdp", "fsdp2", "verl's newer engine: per-parameter sharding"),
    ("data.filter_overlong_prompts", True, False, NOT_SILENT),
    ("data.truncation", "right", "error", NOT_SILENT),
    ("trainer.val_before_train", True, False, "stage=eval measures it with intervals"),
    ("trainer.logger", ["console", "wandb"], ["file"], "needs no account"),
    ("trainer.total_epochs", 30, 1000000, "the number of steps decides"),
]
for _difference in DIFFERENT_IN_RL:
    DIFFERENT_ON_PURPOSE += [("align", *_difference), ("rlvr", *_difference)]


@functools.cache
def compose(stage: str, model: str, *overrides: str) -> tuple[DictConfig, Prism]:
    return compose_run([f"stage={stage}", f"model={model}", "hardware=8xh100", *overrides])


def values(config: DictConfig, keys) -> dict[str, object]:
    chosen = {key: OmegaConf.select(config, key, throw_on_missing=True) for key in keys}
    return {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for key, value in chosen.items()
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("stage", "wanted"), [("sft", SFT), ("warmup", WARMUP), ("align", PPO | ALIGN)]
)
def test_stage_has_the_values_of_the_paper(stage, wanted, model):
    config, _ = compose(stage, model)
    assert values(config, wanted) == wanted


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_algorithm_has_the_values_of_the_paper(algorithm, model):
    config, _ = compose("rlvr", model, f"algorithm={algorithm}")
    own = {key: choice[ALGORITHMS.index(algorithm)] for key, choice in RLVR_BY_ALGORITHM.items()}
    wanted = PPO | RLVR | own
    assert values(config, wanted) == wanted


@pytest.mark.parametrize(("stage", "key", "theirs", "ours", "why"), DIFFERENT_ON_PURPOSE)
def test_intended_difference_has_our_value(stage, key, theirs, ours, why):
    overrides = ["algorithm=gspo"] if why.startswith("only in GSPO") else []
    config, _ = compose(stage, "qwen3_vl_4b", *overrides)
    assert values(config, [key]) == {key: ours}
    assert ours != theirs


@pytest.mark.parametrize("model", MODELS)
def test_stage_warmup_is_one_epoch_of_120000_pairs(model):
    _, prism = compose("warmup", model)
    warmup = prism.warmup
    heldout = round(warmup.prompts * warmup.heldout_fraction)
    responses = (warmup.prompts - heldout) * warmup.samples_per_prompt
    assert responses * len(View) == 120_000
    assert warmup.pairs_per_step * len(View) == 128
    assert warmup.pairs_per_step % warmup.samples_per_prompt == 0, "a step takes whole prompts"
    assert prism.steps == math.ceil(responses / warmup.pairs_per_step)


def test_learning_rate_warms_up_over_a_tenth_of_stage_warmup():
    assert LR_WARMUP_SHARE == 0.1


@pytest.mark.parametrize("model", MODELS)
def test_discriminator_is_upcycled_from_a_separate_model(model):
    """Qwen3-VL-2B in the paper."""
    _, prism = compose("warmup", model)
    assert str(prism.discriminator.upcycle.base) == "Qwen/Qwen3-VL-2B-Instruct"
    assert prism.discriminator.upcycle.base != prism.policy


@pytest.mark.parametrize("model", MODELS)
def test_sft_freezes_the_image_encoder(model):
    assert compose("sft", model)[1].sft.freeze_vision


def test_verl_gets_the_values_of_the_paper_for_the_discriminator(discriminator_folder):
    _, prism = compose("align", "qwen3_vl_4b", f"prism.discriminator.path={discriminator_folder}")
    worker = training_worker_config(prism)
    optimizer, engine = worker.optimizer_config, worker.engine_config
    assert (optimizer.optimizer, optimizer.lr, optimizer.weight_decay) == ("AdamW", 1e-6, 0.01)
    assert (optimizer.clip_grad, optimizer.lr_warmup_steps) == (1.0, 0)
    assert optimizer.lr_scheduler_type == "constant"
    assert (engine.model_dtype, engine.mixed_precision["param_dtype"]) == ("fp32", "bf16")
    assert engine.param_offload
    assert engine.optimizer_offload
    assert worker.model_config.enable_gradient_checkpointing


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("stage", "overrides"),
    [("align", []), *(("rlvr", [f"algorithm={algorithm}"]) for algorithm in ALGORITHMS)],
)
def test_verl_accepts_every_rl_stage(stage, overrides, model):
    config, _ = compose(stage, model, *overrides)
    check_with_verl(config)
    for node in (
        config.actor_rollout_ref.actor,
        config.actor_rollout_ref.rollout,
        config.algorithm,
    ):
        omega_conf_to_dataclass(node)


@pytest.mark.parametrize("hardware", ["8xh100", "1gpu_lora"])
def test_verl_accepts_the_sft_stage(hardware, dense_folder):
    config, _ = compose_run(
        ["stage=sft", "model=qwen3_vl_4b", f"hardware={hardware}", f"prism.policy={dense_folder}"]
    )
    for node in (config.model, config.engine, config.optim, config.checkpoint):
        omega_conf_to_dataclass(node)


def test_1gpu_lora_trains_adapters_of_the_language_model():
    for stage, node in (("sft", "model"), ("rlvr", "actor_rollout_ref.model")):
        config, prism = compose_run([f"stage={stage}", "model=qwen3_vl_4b", "hardware=1gpu_lora"])
        assert values(config, [f"{node}.lora_rank", f"{node}.exclude_modules"]) == {
            f"{node}.lora_rank": 32,
            f"{node}.exclude_modules": ".*visual.*",
        }
        assert prism.hardware.devices_per_node == 1
