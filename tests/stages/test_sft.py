"""Stage sft as a user runs it: complete, failing, stopped, resumed and ended early."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor


def command(digits_folder, output, *arguments: str) -> list[str]:
    overrides = [
        f"prism.root={digits_folder}",
        f"prism.output={output}",
        "prism.optim.lr=1e-3",
        *arguments,
    ]
    return [
        sys.executable,
        "-m",
        "verl_prism.main",
        "stage=sft",
        "prism.sft.examples_per_step=8",
        *overrides,
    ]


@pytest.mark.integration
@pytest.mark.slow
def test_two_steps_export_a_policy(digits_folder, tmp_path):
    run = command(digits_folder, tmp_path, "prism.steps=2", "prism.optim.warmup_steps=0")
    done = subprocess.run(run, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout[done.stdout.index("✓") :].splitlines()) == 4
    assert done.stdout.endswith(f"  report: {tmp_path / 'report.html'}\n")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    AutoProcessor.from_pretrained(tmp_path / "policy")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "policy", dtype="auto")
    assert str(model.dtype) == "torch.float32", "the dtype of the weights"
    exported = {file.name for file in (tmp_path / "policy").iterdir()}
    base = {file.name for file in (digits_folder / "base").iterdir()}
    assert exported == base | {"README.md"}
    losses = [
        json.loads(line)["data"]["train/loss"]
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert losses[1] < losses[0]


@pytest.mark.integration
@pytest.mark.slow
def test_a_failure_names_the_log_and_its_last_errors(digits_folder, tmp_path):
    run = command(digits_folder, tmp_path, "optim.betas=[2,2]")
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"stage sft failed; log in {tmp_path / 'log.txt'}, its last errors:" in done.stderr
    assert "Invalid beta parameter" in done.stderr
    assert not (tmp_path / "policy").exists()


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_no_process(number, digits_folder, tmp_path):
    run = subprocess.Popen(
        command(digits_folder, tmp_path, "prism.steps=9999"), stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "metrics.jsonl").exists():
        assert run.poll() is None
        time.sleep(0.2)
    descendants = psutil.Process(run.pid).children(recursive=True)
    stopped = time.monotonic()
    run.send_signal(number)
    assert run.wait(timeout=15) == 130
    assert time.monotonic() - stopped < 15
    assert run.stderr.read().splitlines() == [
        "stopped; no checkpoint was saved yet (prism.checkpoint_every); "
        f"log in {tmp_path / 'log.txt'}"
    ]
    assert not [process for process in descendants if process.is_running()], "not even a zombie"


@pytest.mark.integration
@pytest.mark.slow
def test_a_resumed_run_gives_the_same_result(digits_folder, tmp_path):
    """Across the end of an epoch: sixteen demonstrations, eight of them per step."""
    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(digits_folder / "data" / "sft.parquet").slice(0, 16), few)

    def train(name: str, *arguments: str) -> subprocess.CompletedProcess:
        constant = (
            "prism.optim.schedule=constant",
            "prism.optim.warmup_steps=0",
            "prism.optim.warmup_ratio=0",
            f"prism.data.train={few}",
        )
        run = command(digits_folder, tmp_path / name, *constant, *arguments)
        return subprocess.run(run, capture_output=True, text=True, check=True)

    train("whole", "prism.steps=4")
    train("parts", "prism.steps=2")
    said = train("parts", "prism.steps=4", "prism.resume=true").stdout
    assert f"resuming from step 2 of {tmp_path}/parts/checkpoints/global_step_2\n" in said
    assert "2 steps in" in said
    expected = load_file(tmp_path / "whole" / "policy" / "model.safetensors")
    found = load_file(tmp_path / "parts" / "policy" / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    metrics = [
        json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["step"] for record in metrics] == [1, 2, 3, 4]


@pytest.mark.integration
@pytest.mark.slow
def test_a_requested_end_saves_the_current_step(digits_folder, tmp_path):
    run = subprocess.Popen(
        command(digits_folder, tmp_path, "prism.steps=9999"), stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text():
        assert run.poll() is None
        time.sleep(0.2)
    run.send_signal(signal.SIGUSR1)
    assert run.wait(timeout=60) == 75
    steps = [
        int(folder.name.rpartition("_")[2])
        for folder in (tmp_path / "checkpoints").glob("global_step_*")
    ]
    assert run.stderr.read().splitlines() == [
        f"saved at step {steps[0]} as requested; continue with prism.resume=true"
    ]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == steps[0]
