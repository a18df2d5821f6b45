"""The stages one after the other on real Ray, TransferQueue, FSDP2 and vLLM, for a few steps each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from openai_endpoint import RIGHT, Endpoint

from verl_prism.discriminator import load_discriminator

REPOSITORY = Path(__file__).parents[1]


class Pipeline:
    """Runs stages as a user does, in a folder of its own."""

    def __init__(self, digits_folder: Path, root: Path):
        self.root = root
        root.mkdir()
        for part in ("data", "base"):
            (root / part).symlink_to(digits_folder / part)

    def run(self, stage: str, *overrides: str) -> list[dict]:
        """The metrics of each step; fails the test with the stage's own message."""
        command = [sys.executable, "-m", "verl_prism.main", f"stage={stage}", f"prism.root={self.root}", *overrides]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stderr}\n{(self.root / stage / 'log.txt').read_text()[-5000:]}"
        assert "Traceback" not in done.stdout + done.stderr
        records = map(json.loads, (self.root / stage / "metrics.jsonl").read_text().splitlines())
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
    checkpoint = next((pipeline.root / "align" / "checkpoints").glob("global_step_2/discriminator/huggingface"))
    after = load_discriminator(checkpoint)
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


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_gspo_with_a_judge_that_goes_down(pipeline):
    """Step 1 takes the judge's word for every answer; afterwards the rules' verdict stands, and the metrics say so. Of
    the two updates of each step the second sees a policy that has moved, and GSPO's narrow clip acts."""
    metrics = pipeline.root / "rlvr" / "metrics.jsonl"
    with Endpoint() as endpoint:
        endpoint.answer = lambda question: 503 if metrics.exists() and metrics.read_text() else RIGHT
        metrics.unlink(missing_ok=True)
        judge = {"endpoint": endpoint.url, "model": "judge", "when_down": "unjudged", "retries": 0}
        steps = pipeline.run("rlvr", "algorithm=gspo", f"prism.policy={pipeline.root}/sft/policy", "prism.steps=3",
                             "prism.rollout.prompts_per_step=4", "prism.rollout.samples_per_prompt=4",
                             "prism.optim.lr=1e-3", "actor_rollout_ref.actor.ppo_mini_batch_size=2",
                             *(f"prism.reward.judge.{key}={value}" for key, value in judge.items()))  # fmt: skip
    assert endpoint.requests
    assert steps[0]["reward/judged"] == 1.0 and steps[0]["reward/opinion/right"] > 0
    assert steps[0]["reward/acc"] == steps[0]["reward/format"]
    assert all(step["reward/judged"] == 1 - step["reward/opinion/down"] < 1 for step in steps[1:])
    assert all(step["actor/pg_clipfrac"] > 0 for step in steps)
