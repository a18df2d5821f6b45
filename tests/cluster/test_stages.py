"""SFT, warm-up and evaluation on two "hosts" with one device each give the result of one host."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from verl_prism.rollout.journal import JournalReader, read_journal
from verl_prism.run_folder import RunFolder

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1500)]

MAIN = ("verl_prism.main",)
TWO_HOSTS = ("verl_prism.cluster", "--hosts", "a,b", "--shell", "env PRISM_HOST={host}", "--")
TWO_DEVICES = "prism.hardware.devices_per_node=2"


@pytest.fixture
def run(digits_folder, tmp_path):
    """Run a stage with a command, in a folder of this name, and return the metrics of each step."""

    def start(module: tuple[str, ...], name: str, *overrides: str) -> list[dict]:
        folder = RunFolder(tmp_path / name)
        folders = (f"prism.root={digits_folder}", f"prism.output={folder.path}")
        command = [sys.executable, "-m", *module, *folders, *overrides]
        done = subprocess.run(command, capture_output=True, text=True)
        log = folder.log.read_text()[-5000:] if folder.log.exists() else ""
        assert done.returncode == 0, done.stderr + log
        records = map(json.loads, folder.metrics.read_text().splitlines())
        return [record["data"] for record in records if "data" in record]

    return start


def assert_equal_steps(one: list[dict], other: list[dict], *names: str) -> None:
    assert len(one) == len(other) > 1
    for step, others in zip(one, other, strict=True):
        for name in names:
            assert step[name] == pytest.approx(others[name], abs=1e-5), name


def engines_in_log(output: Path) -> set[str]:
    """Return the names of the processes in which vLLM engines ran."""
    lines = RunFolder(output).log.read_text().splitlines()
    return {line.split(")")[0] for line in lines if line.startswith("(PolicyEngine pid=")}


def test_sft(run, tmp_path):
    sft = (
        "stage=sft",
        "prism.steps=3",
        "prism.sft.examples_per_step=8",
        "prism.optim.lr=1e-3",
        "prism.optim.warmup_steps=1",
    )
    nodes = run(TWO_HOSTS, "nodes", *sft)
    ranks = run(MAIN, "ranks", *sft, TWO_DEVICES)
    assert_equal_steps(nodes, ranks, "train/loss", "train/grad_norm")
    assert (tmp_path / "nodes" / "policy" / "model.safetensors").exists()


def test_warmup(run, tmp_path):
    trained = ("prism.steps=60", "prism.optim.lr=2e-3", "prism.optim.warmup_steps=10")
    run(MAIN, "sft", "stage=sft", "prism.sft.examples_per_step=16", *trained)
    warmup = (
        "stage=warmup",
        f"prism.policy={tmp_path / 'sft' / 'policy'}",
        "prism.reproducible=true",
        "prism.steps=3",
        "prism.warmup.prompts=40",
        "prism.warmup.samples_per_prompt=2",
        "prism.warmup.pairs_per_step=8",
        "prism.discriminator.lr=1e-3",
        "prism.hardware.max_num_seqs=16",  # five chunks of prompts
    )
    nodes = run(TWO_HOSTS, "nodes", *warmup)
    ranks = run(MAIN, "ranks", *warmup, TWO_DEVICES)
    texts = [[*JournalReader(RunFolder(tmp_path / name).rollouts)] for name in ("nodes", "ranks")]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 40
    assert_equal_steps(nodes, ranks, "loss", "pairs", "grad_norm", "perception/margin")


def test_eval(run, digits_folder, tmp_path):
    evaluation = (
        "stage=eval",
        f"prism.policy={digits_folder / 'base'}",
        "prism.reproducible=true",
        "prism.data.max_response_tokens=24",
        "prism.eval.max_questions=24",
        "prism.eval.samples=3",
        "prism.hardware.max_num_seqs=16",  # six chunks of questions
    )
    run(TWO_HOSTS, "nodes", *evaluation)
    run(MAIN, "one", *evaluation)
    responses = [RunFolder(tmp_path / name).responses.read_text() for name in ("nodes", "one")]
    assert responses[0] == responses[1]
    order = [
        record["row"] for record in read_journal(RunFolder(tmp_path / "nodes").samples("policy"))
    ]
    assert sorted(order) == list(range(24))
    assert len(engines_in_log(tmp_path / "nodes")) == 2, "both hosts have sampled"


def test_sft_continues_on_two_devices_from_a_checkpoint_of_one(run, tmp_path):
    sft = (
        "stage=sft",
        "prism.steps=3",
        "prism.sft.examples_per_step=8",
        "prism.optim.lr=1e-3",
        "prism.optim.schedule=constant",
        "prism.optim.warmup_steps=1",
        "prism.checkpoint_every=1",
        "prism.keep_checkpoints=3",
    )
    whole = run(MAIN, "run", *sft)
    checkpoints = RunFolder(tmp_path / "run").checkpoints
    shutil.rmtree(checkpoints / "global_step_3")
    reshard = ("verl_prism.checkpoints.reshard", checkpoints / "global_step_2", "--world-size", "2")
    subprocess.run([sys.executable, "-m", *reshard], check=True)
    resumed = run(MAIN, "run", *sft, TWO_DEVICES, "prism.resume=true")
    assert_equal_steps(whole, resumed, "train/loss", "train/grad_norm")
