"""Alignment on real Ray and vLLM, ended early by SIGUSR1 and resumed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from verl_prism.run_folder import RunFolder

REPOSITORY = Path(__file__).parents[2]


def wait_for_step(run: subprocess.Popen, output: Path, step: int) -> None:
    metrics = RunFolder(output).metrics
    while not (metrics.exists() and f'"step":{step}' in metrics.read_text()):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)


def plain(state):
    """Return the state with lists in place of tensors, for comparison."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


def parts(checkpoint: Path) -> dict[str, object]:
    """Return the progress of each part of a checkpoint of alignment."""
    progress: dict[str, object] = {
        "data": plain(torch.load(checkpoint / "data.pt", weights_only=False))
    }
    for name in ("actor", "discriminator"):
        optimizer = torch.load(
            checkpoint / name / "optim_world_size_1_rank_0.pt", weights_only=False
        )
        extra = torch.load(
            checkpoint / name / "extra_state_world_size_1_rank_0.pt", weights_only=False
        )
        schedule = extra["lr_scheduler"]
        progress[name] = [
            {int(state["step"]) for state in optimizer["state"].values()},
            schedule["last_epoch"],
            schedule["_last_lr"],
        ]
    return progress


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_align_resumed_after_an_early_end_gives_the_same_result(pipeline):
    """Across the end of an epoch: ten questions, four of them per step."""
    few = pipeline.root / "few.parquet"
    pq.write_table(pq.read_table(pipeline.root / "data" / "train.parquet").slice(0, 10), few)
    own = [
        f"prism.data.train={few}",
        "prism.steps=4",
        "prism.rollout.prompts_per_step=4",
        "prism.rollout.samples_per_prompt=4",
        "prism.optim.warmup_steps=3",
    ]
    whole = pipeline.run("align", *own)
    expected = parts(pipeline.root / "align" / "checkpoints" / "global_step_4")

    output = pipeline.root / "ended"
    command = [
        sys.executable,
        "-m",
        "verl_prism.main",
        "stage=align",
        f"prism.root={pipeline.root}",
        f"prism.output={output}",
        *own,
    ]
    run = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_step(run, output, 1)
    run.send_signal(signal.SIGUSR1)
    _, error = run.communicate()
    assert (run.returncode, error) == (
        75,
        "saved at step 2 as requested; continue with prism.resume=true\n",
    )
    assert {path.name for path in (output / "checkpoints").glob("global_step_*")} == {
        "global_step_2"
    }
    assert not (output / "policy").exists()

    resumed = pipeline.run("align", *own, "prism.resume=true", output=output)
    assert parts(output / "checkpoints" / "global_step_4") == expected
    for name in ("training/global_step", "training/epoch", "actor/lr", "discriminator/lr"):
        assert [step[name] for step in resumed] == [step[name] for step in whole], name
    again = subprocess.run(
        [*command, "prism.resume=true"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (again.returncode, again.stdout) == (
        0,
        f"stage align is complete: {output / 'policy'}\n",
    )
