"""The settings that examples/slurm/pipeline.sh is given: for every stage, of keys that are there."""

import subprocess
from pathlib import Path

import pytest

from verl_prism.compose import compose_run

SLURM = Path(__file__).parents[2] / "examples" / "slurm"
STAGES = ("sft", "warmup", "align", "rlvr", "eval")


@pytest.mark.parametrize("name", ["digits.sh", "qwen3_vl_4b.sh"])
def test_every_stage_finds_what_the_one_before_it_wrote(name):
    read = 'source "$1"; for stage in "${@:2}"; do declare -n own=$stage; printf "%s\\n" "${all[@]}" "${own[@]}" ""; done'
    told = subprocess.run(
        ["bash", "-uc", read, "-", SLURM / name, *STAGES],
        capture_output=True,
        text=True,
        check=True,
    )
    runs = [lines.splitlines() for lines in told.stdout.removesuffix("\n\n").split("\n\n")]
    sft, warmup, align, rlvr, evaluation = (
        compose_run([f"stage={stage}", "prism.resume=true", *overrides])[1]
        for stage, overrides in zip(STAGES, runs, strict=True)
    )
    assert warmup.policy == align.policy == sft.output / "policy"
    assert align.discriminator.path == warmup.output / "discriminator"
    assert rlvr.policy == align.output / "policy"
    stages = (sft, align, rlvr)
    assert list(evaluation.eval.policies.values()) == [stage.output / "policy" for stage in stages]
    assert all(stage.checkpoint_every < stage.steps for stage in (align, rlvr))
