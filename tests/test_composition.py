"""Every combination of the groups composes, our keys set verl's, and messages name the mistake."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from verl_prism.compose import compose_run, trainer_configs_dir
from verl_prism.errors import UserError

STAGES = ("sft", "warmup", "align", "rlvr", "dpo", "sample", "eval")
ALGORITHMS = ("grpo", "dapo", "gspo", "opd_whitebox")
MODELS = ("digits", "qwen3_vl_2b", "qwen3_vl_4b", "qwen3_vl_8b")
HARDWARE = ("cpu", "cuda", "8xh100", "1gpu_lora")
MACHINES = [
    ("digits", "cpu"),
    ("digits", "cuda"),
    ("qwen3_vl_2b", "8xh100"),
    ("qwen3_vl_4b", "8xh100"),
    ("qwen3_vl_4b", "1gpu_lora"),
    ("qwen3_vl_8b", "8xh100"),
]


def ray_devices(algorithm: str, hardware: str) -> list[str]:
    """On CPUs, Ray has as many devices as the policy, and a white-box teacher needs more."""
    return ["prism.hardware.ray_gpus=2"] if (algorithm, hardware) == ("opd_whitebox", "cpu") else []


@pytest.mark.parametrize(("model", "hardware"), MACHINES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_combination_composes(stage, algorithm, model, hardware):
    groups = [f"stage={stage}", f"algorithm={algorithm}", f"model={model}", f"hardware={hardware}"]
    config, prism = compose_run([*groups, *ray_devices(algorithm, hardware)])
    assert (prism.stage, prism.algorithm.name, prism.model.name) == (stage, algorithm, model)
    assert prism.hardware.device == ("cpu" if hardware == "cpu" else "cuda")
    assert not OmegaConf.missing_keys(config.prism)
    assert ("actor_rollout_ref" in config) == (stage in ("align", "rlvr"))
    assert ("engine" in config) == (stage in ("sft", "dpo"))
    longest = prism.data.max_prompt_tokens + prism.data.max_response_tokens
    texts = 2 if stage == "dpo" else 1
    assert texts * longest <= prism.hardware.max_tokens_per_device, (
        "a whole sequence, or both of a pair, fits into one forward pass"
    )
    if stage in ("align", "rlvr"):
        rollout = config.actor_rollout_ref.rollout
        assert rollout.max_model_len == longest, "vLLM's cache has to hold one such sequence"
        teacher = config.distillation.teacher_models.teacher_model.inference
        assert not config.distillation.enabled or teacher.max_model_len == longest + 1


def test_every_choice_of_each_group_is_tested():
    folders = {"stage": STAGES, "algorithm": ALGORITHMS, "model": MODELS, "hardware": HARDWARE}
    folders["discriminator"] = ("eight_experts", "likelihood")
    for group, names in folders.items():
        assert {file.stem for file in (trainer_configs_dir() / group).iterdir()} == set(names)


@pytest.mark.parametrize(("model", "hardware"), MACHINES)
def test_eight_experts_let_each_view_choose(model, hardware):
    choices = [f"model={model}", f"hardware={hardware}", "discriminator=eight_experts"]
    _, prism = compose_run(["stage=warmup", *choices])
    upcycle = prism.discriminator.upcycle
    assert (upcycle.experts, upcycle.experts_per_token) == (8, 2)


def test_our_keys_set_the_keys_of_verl():
    config, _ = compose_run(
        [
            "stage=rlvr",
            "algorithm=gspo",
            "prism.optim.lr=3e-5",
            "prism.rollout.samples_per_prompt=5",
        ]
    )
    actor = config.actor_rollout_ref.actor
    assert (actor.optim.lr, config.actor_rollout_ref.rollout.n) == (3e-5, 5)
    assert actor.policy_loss.loss_mode == "gspo"
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == (3e-4, 4e-4)
    assert actor.loss_agg_mode == "seq-mean-token-mean"
    assert config.trainer.v1.trainer_mode == "prism"


def test_dapo_samples_dynamically():
    config, prism = compose_run(["stage=rlvr", "algorithm=dapo"])
    assert config.algorithm.filter_groups.enable
    assert config.algorithm.filter_groups.metric == "acc"
    assert config.trainer.v1.sampler.sampler_kwargs.filter_groups_metric == "acc"
    assert config.reward.reward_manager.name == "dapo"
    reward = config.reward.reward_kwargs
    assert reward.max_resp_len == prism.data.max_response_tokens
    assert reward.overlong_buffer_cfg.len < reward.max_resp_len


def test_verls_keys_on_the_command_line_override_ours():
    config, _ = compose_run(
        ["stage=rlvr", "actor_rollout_ref.actor.ppo_mini_batch_size=2", "trainer.test_freq=7"]
    )
    assert (config.actor_rollout_ref.actor.ppo_mini_batch_size, config.trainer.test_freq) == (2, 7)


def test_stages_are_chained_by_default(tmp_path):
    root = f"prism.root={tmp_path}"
    _, align = compose_run(["stage=align", root])
    _, rlvr = compose_run(["stage=rlvr", root])
    assert align.policy == tmp_path / "sft" / "policy"
    assert align.discriminator.path == tmp_path / "warmup" / "discriminator"
    assert rlvr.policy == align.output / "policy"


def test_paths_in_the_keys_of_verl_are_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config, prism = compose_run(["stage=rlvr", "prism.policy=here"])
    assert str(prism.policy) == config.actor_rollout_ref.model.path == str(tmp_path / "here")


def test_workers_of_stage_align_get_our_node():
    config, _ = compose_run(["stage=align"])
    assert config.actor_rollout_ref.prism == config.prism
    assert config.algorithm.adv_estimator == "prism_alignment"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "choose the stage to run: stage=align|dpo|eval|rlvr|sample|sft|warmup"),
        (
            ["stage=foo"],
            "unknown stage foo; stage= is one of align, dpo, eval, rlvr, sample, sft, warmup",
        ),
        (
            ["stage=rlvr", "algorithm=ppo"],
            "unknown algorithm ppo; algorithm= is one of dapo, grpo, gspo",
        ),
        (
            ["stage=sft", "model=hf_model"],
            "unknown model hf_model; model= is one of digits, qwen3_vl_2b, ",
        ),
        (["stage=rlvr", "prism.stepz=3"], "unknown key prism.stepz; did you mean prism.steps?"),
        (
            ["stage=rlvr", "trainer.save_frek=3"],
            "unknown key trainer.save_frek; did you mean trainer.save_freq?",
        ),
        (
            ["stage=rlvr", "prism.rollout.samples_per_promt=3"],
            "did you mean prism.rollout.samples_per_prompt?",
        ),
        (["stage=rlvr", "prism.reward.bonus=1"], "prism.reward has function, accuracy_weight"),
        (["stage=sft", "algoritm=grpo"], "unknown key algoritm; did you mean algorithm?"),
        (["stage=sft", "actor_rollout_ref.rollout.n=3"], "unknown key actor_rollout_ref.rollout.n"),
        (["stage=rlvr", "+prism.extra=1"], "prism.extra=1: extra inputs are not permitted"),
        (["stage=rlvr", "prism=3"], "prism=3: input should be a valid dictionary"),
        (["stage=rlvr", "steps"], "Error parsing override 'steps'"),
        (["stage=rlvr", "prism.root=${nothing}"], "Interpolation key 'nothing' not found"),
    ],
)
def test_message_names_the_mistake(overrides, message):
    with pytest.raises(UserError) as caught:
        compose_run(overrides)
    assert message in str(caught.value)
    assert "+" not in str(caught.value), "no message advises to add a plus"


def test_composing_imports_no_slow_package():
    code = (
        "import sys; from verl_prism.compose import compose_run; compose_run(['stage=align']);"
        "slow = {'torch', 'verl', 'ray', 'vllm', 'transformers'} & set(sys.modules);"
        "sys.exit(', '.join(slow))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_verl_accepts_the_ppo_config(algorithm, hardware):
    """verl's dataclasses refuse unknown keys; composing alone would not show them."""
    from verl.utils.config import omega_conf_to_dataclass

    from verl_prism.trainer.validate import check_with_verl

    groups = ["stage=rlvr", f"algorithm={algorithm}", f"hardware={hardware}"]
    config, _ = compose_run([*groups, *ray_devices(algorithm, hardware)])
    check_with_verl(config)
    for node in (
        config.actor_rollout_ref.actor,
        config.actor_rollout_ref.rollout,
        config.algorithm,
    ):
        omega_conf_to_dataclass(node)


@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_verl_accepts_the_sft_config(hardware, stage):
    from verl.utils.config import omega_conf_to_dataclass

    config, _ = compose_run([f"stage={stage}", f"hardware={hardware}"])
    for node in (config.engine, config.optim, config.checkpoint, config.profiler):
        omega_conf_to_dataclass(node)


def test_a_config_that_verl_refuses_is_a_user_error():
    from verl_prism.trainer.validate import check_with_verl

    config, _ = compose_run(["stage=rlvr"])
    config.actor_rollout_ref.actor.loss_agg_mode = "median"
    with pytest.raises(
        UserError, match="verl refuses this configuration: Invalid loss_agg_mode: median"
    ):
        check_with_verl(config)
