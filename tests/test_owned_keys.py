"""verl's keys that this package sets: an override that contradicts them is refused."""

import pytest
from verl.utils.tracking import Tracking

from verl_prism.compose import compose_run
from verl_prism.config import Logger
from verl_prism.errors import UserError
from verl_prism.owned_keys import FIXED, FIXED_IN_ALIGN


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("actor_rollout_ref.rollout.n=4", "set prism.rollout.samples_per_prompt instead"),
        ("data.train_batch_size=3", "set prism.rollout.prompts_per_step instead"),
        ("trainer.total_training_steps=1", "set prism.steps instead"),
        ("trainer.n_gpus_per_node=8", "set prism.hardware.devices_per_node instead"),
        ("trainer.default_local_dir=/elsewhere", "set prism.output instead"),
        ("trainer.logger=[console]", "set prism.loggers instead"),
        ("trainer={logger: [console]}", "set prism.loggers instead"),
        ("~trainer.logger", "set prism.loggers instead"),
        ("actor_rollout_ref.actor.optim.lr=1", "set prism.optim.lr instead"),
        ("trainer.total_epochs=3", "set prism.steps or prism.epochs"),
        ("trainer.resume_mode=auto", "prism.resume=true resumes a run"),
        ("data.truncation=left", "set prism.data.overlong=error or filter"),
        (
            "reward.custom_reward_function.path=own.py",
            "set prism.reward.function=path/to/file.py:function",
        ),
    ],
)
def test_a_contradiction_names_the_key_to_set(override, message):
    with pytest.raises(UserError) as caught:
        compose_run(["stage=rlvr", override])
    assert message in str(caught.value)


def test_all_contradictions_are_named():
    with pytest.raises(UserError) as caught:
        compose_run(["stage=align", "actor_rollout_ref.rollout.n=4", "trainer.nnodes=2"])
    assert len(str(caught.value).splitlines()) == 2


def test_stage_align_keeps_its_advantage():
    with pytest.raises(UserError, match="stage align learns from the discriminator"):
        compose_run(["stage=align", "algorithm.adv_estimator=grpo"])
    compose_run(["stage=rlvr", "algorithm.adv_estimator=rloo"])


@pytest.mark.parametrize(
    "override",
    [
        "actor_rollout_ref.rollout.n=8",  # as prism.rollout.samples_per_prompt
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "trainer.experiment_name=mine",
        "actor_rollout_ref.model.external_lib=mine",
        "trainer.test_freq=5",
    ],
)
def test_what_does_not_contradict_is_accepted(override):
    compose_run(["stage=rlvr", override])


def test_a_key_that_prism_changes_too_is_compared_with_the_changed_value():
    compose_run(
        ["stage=rlvr", "prism.rollout.samples_per_prompt=4", "actor_rollout_ref.rollout.n=4"]
    )


def test_fixed_keys_exist():
    from omegaconf import OmegaConf

    missing = object()
    configs = [compose_run([f"stage={stage}"])[0] for stage in ("sft", "align", "rlvr")]
    for key in FIXED | FIXED_IN_ALIGN:
        found = [OmegaConf.select(config, key, default=missing) for config in configs]
        assert any(value is not missing for value in found), key


def test_loggers_are_those_of_verl():
    assert set(Logger.__args__) == set(Tracking.supported_backend)


def test_the_file_logger_is_always_on():
    config, prism = compose_run(["stage=sft", "prism.loggers=[console,file]"])
    assert prism.loggers == config.trainer.logger == ["file", "console"]
    with pytest.raises(UserError, match=r"prism\.loggers\.0=tensorbord: input should be 'wandb',"):
        compose_run(["stage=sft", "prism.loggers=[tensorbord]"])


@pytest.mark.parametrize("name", ["a b", "a=b", "run (1)", "it's", "a,b", "50%"])
def test_paths_may_have_any_character(name, tmp_path):
    assert compose_run(["stage=sft", f"prism.root={tmp_path}/{name}"])[1].root == tmp_path / name


def test_a_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(compose_run(["stage=sft", "prism.root=~/runs"])[1].root) == "/home/someone/runs"
