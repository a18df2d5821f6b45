"""The stages one after the other on real Ray, TransferQueue, FSDP2 and vLLM, for a few steps each."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from verl_prism.discriminator import load_discriminator

REPOSITORY = Path(__file__).parents[1]


class Pipeline:
    """Runs stages as a user does, in a folder of its own."""

    def __init__(self, digits_folder: Path, root: Path):
        self.root = root
        root.mkdir()
        for part in ("data", "base"):
            (root / part).symlink_to(digits_folder / part)

    def run(self, stage: str, *overrides: str, output: Path | None = None) -> list[dict]:
        """The metrics of each step; fails with the stage's own message. output: <root>/<stage> unless given."""
        output = output or self.root / stage
        command = [sys.executable, "-m", "verl_prism.main", f"stage={stage}", f"prism.root={self.root}", *overrides]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stderr}\n{(output / 'log.txt').read_text()[-5000:]}"
        assert "Traceback" not in done.stdout + done.stderr
        records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        return [record["data"] for record in records if "data" in record]


@pytest.fixture(scope="module")
def pipeline(digits_folder, tmp_path_factory):
    """A policy that knows the format, and a discriminator that has seen its answers."""
    pipeline = Pipeline(digits_folder, tmp_path_factory.mktemp("pipeline") / "digits")
    pipeline.run("sft", "prism.steps=120", "prism.sft.examples_per_step=16", "prism.optim.lr=2e-3",
                 "prism.optim.warmup_steps=10")  # fmt: skip
    pipeline.run("warmup", "prism.steps=5", "prism.discriminator.lr=1e-3", "prism.warmup.prompts=60",
                 "prism.warmup.samples_per_prompt=2", "prism.warmup.pairs_per_step=16")  # fmt: skip
    return pipeline


def assert_rollouts_are_the_actors(steps: list[dict]) -> None:
    """vLLM serves the actor's weights: their probabilities agree, at the first step and after each update."""
    for step in steps:
        assert step["training/rollout_actor_probs_pearson_corr"] > 0.9999
        assert step["training/rollout_probs_diff_max"] < 0.01


@pytest.fixture(scope="module")
def aligned(pipeline):
    return pipeline.run("align", "prism.steps=2", "prism.rollout.prompts_per_step=4",
                        "prism.rollout.samples_per_prompt=4", "prism.optim.lr=1e-3")  # fmt: skip


@pytest.mark.timeout(900)
def test_sft_learns_the_format(pipeline):
    summary = json.loads((pipeline.root / "warmup" / "summary.json").read_text())
    assert float(summary["figures"]["invalid rollouts"]) < 60  # of 120


def test_align_updates_both_and_serves_what_it_trained(pipeline, aligned):
    assert len(aligned) == 2
    assert_rollouts_are_the_actors(aligned)
    for step in aligned:
        assert step["discriminator/pairs"] + 16 * step["align/invalid"] == pytest.approx(16)
        assert step["discriminator/grad_norm"] > 0 and step["actor/grad_norm"] > 0
        assert step["align/advantage_std"] > 0


def test_align_leaves_a_policy_and_a_discriminator_that_load(pipeline, aligned):
    before = load_discriminator(pipeline.root / "warmup" / "discriminator")
    after = load_discriminator(pipeline.root / "align" / "discriminator")
    assert not before.heads["perception"].weight.equal(after.heads["perception"].weight)
    assert (pipeline.root / "align" / "policy" / "model.safetensors").is_file()


def test_rlvr_starts_from_the_aligned_policy(pipeline, aligned):
    steps = pipeline.run("rlvr", "prism.steps=2", "prism.rollout.prompts_per_step=4",
                         "prism.rollout.samples_per_prompt=4", "prism.optim.lr=1e-3")  # fmt: skip
    assert len(steps) == 2
    assert_rollouts_are_the_actors(steps)
    assert 0 < steps[0]["critic/score/mean"] < 1
    policies = f"prism.eval.policies={{SFT: {pipeline.root}/sft/policy, RL: {pipeline.root}/rlvr/policy}}"
    pipeline.run("eval", policies, "prism.eval.metrics=examples/digits/metrics.py:measure", "prism.eval.questions=40")
    assert {"results.json", "results.md", "examples.png"} <= set(os.listdir(pipeline.root / "eval"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("placement", ["colocated", "pool"])
def test_align_on_two_ranks(pipeline, placement):
    """The discriminator sharded over the actor's two ranks, or on a device of its own."""
    ranks = ["prism.hardware.devices_per_node=2"]
    if placement == "pool":
        ranks = [f"prism.discriminator.placement={placement}", "prism.hardware.ray_gpus=2"]
    steps = pipeline.run("align", "prism.steps=2", "prism.rollout.prompts_per_step=4",
                         "prism.rollout.samples_per_prompt=4", "prism.optim.lr=1e-3", *ranks)  # fmt: skip
    assert_rollouts_are_the_actors(steps)
    assert all(step["discriminator/pairs"] + 16 * step["align/invalid"] == pytest.approx(16) for step in steps)


def wait_for_step(run: subprocess.Popen, output: Path, step: int) -> None:
    metrics = output / "metrics.jsonl"
    while not (metrics.exists() and f'"step":{step}' in metrics.read_text()):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)


def plain(state):
    """With lists in the place of tensors, to be compared."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


def parts(checkpoint: Path) -> dict[str, object]:
    """How far each part of a checkpoint of alignment has come."""
    progress: dict[str, object] = {"data": plain(torch.load(checkpoint / "data.pt", weights_only=False))}
    for name in ("actor", "discriminator"):
        optimizer = torch.load(checkpoint / name / "optim_world_size_1_rank_0.pt", weights_only=False)
        extra = torch.load(checkpoint / name / "extra_state_world_size_1_rank_0.pt", weights_only=False)
        schedule = extra["lr_scheduler"]
        progress[name] = [{int(state["step"]) for state in optimizer["state"].values()}, schedule["last_epoch"],
                          schedule["_last_lr"]]  # fmt: skip
    return progress


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_align_asked_to_end_saves_and_goes_on_as_if_it_had_not(pipeline):
    """Across an epoch's end: ten questions, of which four make a step."""
    few = pipeline.root / "few.parquet"
    pq.write_table(pq.read_table(pipeline.root / "data" / "train.parquet").slice(0, 10), few)
    own = [f"prism.data.train={few}", "prism.steps=4", "prism.rollout.prompts_per_step=4",
           "prism.rollout.samples_per_prompt=4", "prism.optim.warmup_steps=3"]  # fmt: skip
    whole = pipeline.run("align", *own)
    expected = parts(pipeline.root / "align" / "checkpoints" / "global_step_4")

    output = pipeline.root / "ended"
    command = [sys.executable, "-m", "verl_prism.main", "stage=align", f"prism.root={pipeline.root}",
               f"prism.output={output}", *own]  # fmt: skip
    run = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(run, output, 1)
    run.send_signal(signal.SIGUSR1)
    _, error = run.communicate()
    assert (run.returncode, error) == (75, "saved at step 2 as asked; prism.resume=true goes on from there\n")
    assert {path.name for path in (output / "checkpoints").glob("global_step_*")} == {"global_step_2"}
    assert not (output / "policy").exists()

    resumed = pipeline.run("align", *own, f"prism.output={output}", "prism.resume=true", output=output)
    assert parts(output / "checkpoints" / "global_step_4") == expected
    for name in ("training/global_step", "training/epoch", "actor/lr", "discriminator/lr"):
        assert [step[name] for step in resumed] == [step[name] for step in whole], name
    assert_rollouts_are_the_actors(resumed)
    again = subprocess.run([*command, "prism.resume=true"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, f"stage align is complete: {output / 'policy'}\n")
