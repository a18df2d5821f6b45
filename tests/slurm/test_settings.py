"""The settings files for examples/slurm/pipeline.sh: keys exist, and stages find their inputs."""

import subprocess
from pathlib import Path

import pytest

from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.run_folder import RunFolder

SLURM = Path(__file__).parents[2] / "examples" / "slurm"
STAGES = ("sft", "warmup", "align", "rlvr", "eval")


# Prints the arguments of one stage, one per line.
READ = 'source "$1"; declare -n own=$2; printf "%s\\n" "${all[@]}" "${own[@]}"'


def compose(settings: Path, stage: str) -> Prism:
    command = ["bash", "-uc", READ, "-", settings, stage]
    arguments = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, prism = compose_run([f"stage={stage}", "prism.resume=true", *arguments.splitlines()])
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
