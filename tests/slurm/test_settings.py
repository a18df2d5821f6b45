"""The settings files for examples/slurm/pipeline.sh: keys exist, and stages find their inputs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.rollout.engines import engine_count
from verl_prism.run_folder import RunFolder

SLURM = Path(__file__).parents[2] / "examples" / "slurm"
STAGES = ("sft", "warmup", "align", "rlvr", "eval")


# Prints the items of arrays, one per line.
READ = """
source "$1"
for name in "${@:2}"; do
    declare -n array=$name
    for item in "${array[@]}"; do printf '%s\\n' "$item"; done
done
"""


def read(settings: Path, *arrays: str) -> list[str]:
    command = ["bash", "-uc", READ, "-", settings, *arrays]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def compose(settings: Path, stage: str, *overrides: str) -> Prism:
    arguments = read(settings, "all", stage)
    _, prism = compose_run([f"stage={stage}", "prism.resume=true", *arguments, *overrides])
    return prism


@pytest.mark.parametrize("name", ["digits.sh", "qwen3_vl_4b.sh"])
def test_each_stage_starts_from_the_output_of_an_earlier_one(name):
    stages = {stage: compose(SLURM / name, stage) for stage in STAGES}
    folders = {stage: RunFolder(prism.output) for stage, prism in stages.items()}
    policies = [folders[stage].policy for stage in ("sft", "align", "rlvr")]
    assert stages["warmup"].policy == folders["sft"].policy
    assert stages["align"].policy == folders["sft"].policy
    assert stages["align"].discriminator.path == folders["warmup"].discriminator
    assert stages["rlvr"].policy == folders["align"].policy
    assert list(stages["eval"].eval.policies.values()) == policies
    for stage in ("align", "rlvr"):
        assert stages[stage].checkpoint_every < stages[stage].steps


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_4b_example_uses_every_gpu_that_it_requests(nodes):
    settings = SLURM / "qwen3_vl_4b.sh"
    resources = read(settings, "resources")
    assert "--gpus-per-node=8" in resources
    for stage in STAGES:
        prism = compose(settings, stage, f"prism.hardware.nodes={nodes}")
        assert prism.devices == 8 * nodes
        assert engine_count(prism.hardware) == 8 * nodes, "a 4B model needs one GPU"
        assert prism.sft.examples_per_step % prism.devices == 0
        assert (
            prism.rollout.prompts_per_step * prism.rollout.samples_per_prompt % prism.devices == 0
        )


@pytest.fixture
def pipeline(tmp_path):
    """Run the pipeline, and return what it passes to sbatch, which a script replaces."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "$@" >> "$SUBMITTED"; echo 7\n')
    sbatch.chmod(0o755)
    examples = tmp_path / "checkout" / "examples"
    shutil.copytree(SLURM, examples / "slurm")
    record = tmp_path / "submitted"
    record.touch()
    variables = {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(SLURM.parents[1]),
        "SUBMITTED": str(record),
    }

    def submit(settings: Path) -> tuple[subprocess.CompletedProcess, list[str]]:
        command = [examples / "slurm" / "pipeline.sh", settings, "2"]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
        return done, record.read_text().splitlines()

    return submit


def test_the_settings_name_the_resources_and_the_nodes_of_every_stage(pipeline):
    done, submitted = pipeline(SLURM / "qwen3_vl_4b.sh")
    assert done.returncode == 0, done.stderr
    assert len(submitted) == len(STAGES)
    for line, stage in zip(submitted, STAGES, strict=True):
        assert "--nodes=2 --gpus-per-node=8 --exclusive --mem=0 --time=24:00:00" in line
        assert f"--job-name={stage} " in line
        assert f"examples/slurm/stage.sbatch {stage} model=qwen3_vl_4b hardware=8xh100" in line


def test_nothing_is_submitted_if_a_later_stage_has_a_mistake(pipeline, tmp_path):
    settings = tmp_path / "settings.sh"
    mistake = "rlvr=(prism.rollout.samples_per_promt=8)"
    settings.write_text(f"{(SLURM / 'qwen3_vl_4b.sh').read_text()}\n{mistake}\n")
    done, submitted = pipeline(settings)
    assert done.returncode == 2
    assert "prism.rollout.samples_per_prompt" in done.stderr
    assert submitted == []
