"""The command as a person types it: exit codes, one clear message, and nothing started for a mistake."""

import subprocess
import sys
import time

import pytest
import yaml

from verl_prism.main import main


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "verl_prism.main", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_names_stages_and_gives_examples():
    done = command("--help")
    assert done.returncode == 0
    for word in (
        "stage=sft",
        "stage=warmup",
        "stage=align",
        "stage=rlvr",
        "stage=eval",
        "algorithm=grpo|dapo|gspo",
    ):
        assert word in done.stdout
    assert done.stdout.count("python -m verl_prism.main stage=") == 6


def test_cfg_prints_the_whole_config():
    done = command("stage=rlvr", "algorithm=gspo", "--cfg", "job")
    assert (done.returncode, done.stderr) == (0, "")
    config = yaml.safe_load(done.stdout)
    assert config["prism"]["stage"] == "rlvr"
    assert config["actor_rollout_ref"]["actor"]["policy_loss"]["loss_mode"] == "gspo"


def test_cfg_of_one_part():
    done = command("stage=sft", "--cfg", "job", "--package", "prism.sft")
    assert yaml.safe_load(done.stdout) == {
        "examples_per_step": 16,
        "freeze_vision": False,
        "dataloader_workers": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stage=trainn"], "unknown stage trainn"),
        (["stage=sft", "prism.stpes=3"], "did you mean prism.steps?"),
        (["stage=sft", "prism.policy=/nowhere"], "prism.policy=/nowhere: no such folder"),
        (
            ["stage=sft", "prism.steps=-1", "--cfg", "job"],
            "prism.steps=-1: input should be greater than 0",
        ),
        (["stage=sft", "--cfg", "job", "--package", "nothing"], "--package nothing: no such part"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments, said, tmp_path):
    started = time.monotonic()
    done = command(*arguments, f"prism.root={tmp_path}")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir()), "nothing was started"
    assert time.monotonic() - started < 60


def test_data_and_folders_are_checked_before_anything_starts(dense_folder, tmp_path):
    done = command("stage=rlvr", f"prism.root={tmp_path}", f"prism.policy={dense_folder}")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"verl_prism: prism.data.train={tmp_path / 'data' / 'train.parquet'}: no such file\n"
    )


def test_check_alone_starts_nothing(digits_folder, tmp_path):
    done = command(
        "stage=sft", f"prism.root={digits_folder}", f"prism.output={tmp_path / 'sft'}", "--check"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "sft").exists()


def test_secrets_are_printed_neither_with_the_config_nor_in_a_message(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "planted-1")
    planted = [
        "++ray_kwargs.ray_init.runtime_env.env_vars.MY_TOKEN=planted-2",
        "trainer.experiment_name=planted-1",
    ]
    assert main(["stage=rlvr", *planted, "--cfg", "job"]) == 0
    shown = capsys.readouterr().out
    assert (
        "planted" not in shown
        and yaml.safe_load(shown)["trainer"]["experiment_name"] == "[redacted]"
    )
    assert main(["stage=rlvr", "+prism.api_key=planted-3"]) == 2
    assert capsys.readouterr().err.startswith("verl_prism: prism.api_key=[redacted]: ")
