"""The command line: exit codes, one clear message per mistake, and no stage started for one."""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from verl_prism.compose import compose_run, trainer_configs_dir
from verl_prism.config import flatten
from verl_prism.data.arrow_copy import has_copy
from verl_prism.main import HELP, _progress_bar, main


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "verl_prism.main", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_names_every_choice_of_each_group():
    done = command("--help")
    assert done.returncode == 0
    for group in ("stage", "algorithm", "model", "hardware"):
        choices = {file.stem for file in (trainer_configs_dir() / group).glob("*.yaml")}
        named = re.findall(rf"^  {group}=([\w|]+)", done.stdout, re.MULTILINE)
        assert set("|".join(named).split("|")) == choices
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_examples_in_the_help_compose():
    examples = [line for line in HELP.splitlines() if line.startswith("  python -m")]
    assert len(examples) == 5
    for example in examples:
        overrides = shlex.split(example)[3:]
        compose_run([item for item in overrides if item not in ("--cfg", "job")])


def test_keys_in_the_help_exist():
    _, prism = compose_run(["stage=sft"])
    known = {key for key, _ in flatten(prism.model_dump(mode="json"), "prism")}
    named = set(re.findall(r"^  (prism\.[\w.]+)=", HELP, re.MULTILINE))
    assert len(named) > 10
    assert named <= known


def test_cfg_prints_the_whole_config():
    done = command("stage=rlvr", "algorithm=gspo", "--cfg", "job")
    assert (done.returncode, done.stderr) == (0, "")
    config = yaml.safe_load(done.stdout)
    assert config["prism"]["stage"] == "rlvr"
    assert config["actor_rollout_ref"]["actor"]["policy_loss"]["loss_mode"] == "gspo"


def test_package_prints_one_part_of_the_config():
    done = command("stage=sft", "--cfg", "job", "--package", "prism.sft")
    assert yaml.safe_load(done.stdout) == {
        "examples_per_step": 16,
        "freeze_vision": False,
        "dataloader_workers": 1,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_a_mistake_is_one_message_and_exit_code_2(arguments, message, tmp_path):
    started = time.monotonic()
    done = command(*arguments, f"prism.root={tmp_path}")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir()), "no stage was started"
    assert time.monotonic() - started < 60


def test_data_and_folders_are_checked_before_anything_starts(dense_folder, tmp_path):
    done = command("stage=rlvr", f"prism.root={tmp_path}", f"prism.policy={dense_folder}")
    assert done.returncode == 2
    missing = tmp_path / "data" / "train.parquet"
    assert done.stderr == f"verl_prism: prism.data.train={missing}: no such file\n"


def test_check_starts_nothing(digits_folder, tmp_path):
    done = command(
        "stage=sft", f"prism.root={digits_folder}", f"prism.output={tmp_path / 'sft'}", "--check"
    )
    assert done.returncode == 0
    assert done.stdout == "ok: 16,300 rows, 1 epoch, longest demonstration 72 tokens\n"
    assert not (tmp_path / "sft").exists()


def test_check_copies_the_data_that_the_stage_reads(digits_folder, tmp_path, capsys):
    cache = tmp_path / "cache"
    data = digits_folder / "data"
    run = ["stage=rlvr", f"prism.root={digits_folder}", f"prism.policy={digits_folder}/base"]
    run += [f"prism.data.cache={cache}", f"prism.output={tmp_path / 'rlvr'}", "--check"]
    assert main(run) == 0
    assert has_copy(data / "train.parquet", cache)
    assert has_copy(data / "heldout.parquet", cache)
    copies = {folder: folder.stat().st_mtime_ns for folder in cache.glob("*/")}
    assert len(copies) == 2
    assert main(run) == 0
    assert {folder: folder.stat().st_mtime_ns for folder in cache.glob("*/")} == copies
    assert capsys.readouterr().err == ""


def test_the_data_is_copied_before_the_stage_starts(digits_folder, tmp_path, monkeypatch):
    found = []

    def launch(config, prism) -> int:
        found.append(has_copy(prism.data.train, prism.data.cache))
        return 0

    monkeypatch.setattr("verl_prism.launcher.launch.launch", launch)
    run = ["stage=sft", f"prism.root={digits_folder}", f"prism.output={tmp_path / 'sft'}"]
    assert main([*run, f"prism.data.cache={tmp_path / 'cache'}"]) == 0
    assert found == [True]


def test_a_bar_shows_a_title_that_looks_like_markup(monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with _progress_bar("copying [red]{x}.parquet") as on_progress:
        on_progress(1, 4)
    shown = capfd.readouterr().err
    assert "copying [red]{x}.parquet" in shown
    assert "25%" in shown


def test_secrets_are_in_neither_the_printed_config_nor_a_message(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "planted-1")
    planted = [
        "++ray_kwargs.ray_init.runtime_env.env_vars.MY_TOKEN=planted-2",
        "trainer.experiment_name=planted-1",
    ]
    assert main(["stage=rlvr", *planted, "--cfg", "job"]) == 0
    shown = capsys.readouterr().out
    assert "planted" not in shown
    assert yaml.safe_load(shown)["trainer"]["experiment_name"] == "[redacted]"
    assert main(["stage=rlvr", "+prism.api_key=planted-3"]) == 2
    assert capsys.readouterr().err.startswith("verl_prism: prism.api_key=[redacted]: ")


def test_a_check_of_a_gpu_run_needs_no_gpu(digits_folder, monkeypatch, capsys):
    monkeypatch.setattr("verl_prism.data.checks.host.GPU_FILES", ())
    folder = f"prism.root={digits_folder}"
    data = f"prism.data.train={digits_folder}/data/sft.parquet"
    assert main(["stage=sft", "hardware=cuda", folder, data, "--check"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("ok: 16,300 rows, ")
    assert "\nno GPU here: " in shown
    assert main(["stage=sft", "hardware=cuda", folder, f"{data}.missing", "--check"]) == 2
    assert main(["stage=sft", "hardware=cuda", folder, data]) == 2
    assert "hardware=cuda, but this host has no GPU" in capsys.readouterr().err


def test_epochs_set_the_steps_from_the_rows(digits_folder, capsys):
    run = ["stage=sft", f"prism.root={digits_folder}", "prism.epochs=3"]
    assert main([*run, "--check"]) == 0
    assert capsys.readouterr().out.startswith("ok: 16,300 rows, 3 epochs, longest demonstration")
    assert main([*run, "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["prism"]["steps"] == shown["trainer"]["total_training_steps"] == 3057


def test_many_epochs_give_a_note(digits_folder, capsys):
    run = ["stage=sft", f"prism.root={digits_folder}", "prism.steps=85625"]
    assert main([*run, "--check"]) == 0
    note = "verl_prism: note: prism.steps=85,625 are 84 epochs of 16,300 rows; an epoch has 1,019"
    assert capsys.readouterr().err.startswith(note)


def test_a_config_is_shown_without_the_data_that_its_epochs_need(tmp_path, capsys):
    assert main(["stage=sft", f"prism.root={tmp_path}", "--cfg", "job"]) == 0
    shown = capsys.readouterr()
    assert yaml.safe_load(shown.out)["prism"]["epochs"] == 1
    assert "note: prism.steps is not that of prism.epochs: prism.data.train=" in shown.err


def test_an_option_with_dashes_is_not_a_key(capsys):
    assert main(["--stage", "sft"]) == 2
    assert capsys.readouterr().err == (
        "verl_prism: unknown option --stage; write stage=... without dashes\n"
    )


def test_a_failure_that_nothing_foresaw_is_one_line_and_a_file(monkeypatch, capsys):
    def fail(overrides, **options):
        raise RuntimeError("no one expects this")

    monkeypatch.setattr("verl_prism.main.compose_run", fail)
    assert main(["stage=sft", "--cfg", "job"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("verl_prism: RuntimeError: no one expects this; traceback in ")
    assert len(error.splitlines()) == 1
    file = Path(error.split("traceback in ")[1].strip())
    assert "Traceback" in file.read_text()
    file.unlink()


def test_policies_are_evaluated_without_the_one_of_stage_rlvr(digits_folder, tmp_path, capsys):
    policies = f"prism.eval.policies={{base: {digits_folder}/base}}"
    data = f"prism.data.heldout={digits_folder}/data/heldout.parquet"
    assert main(["stage=eval", f"prism.root={tmp_path}", data, policies, "--check"]) == 0
    assert capsys.readouterr().out == "ok: 600 rows, longest prompt 42 tokens\n"
