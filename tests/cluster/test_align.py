"""Alignment on two "hosts" of one rank each, through the launcher, does what two ranks of one host do."""

import json
import subprocess
import sys

import pytest

SMALL = ["prism.rollout.prompts_per_step=4", "prism.rollout.samples_per_prompt=4"]


def run(module: list[str], root, output, *overrides: str) -> list[dict]:
    """The metrics of each step."""
    command = [
        sys.executable,
        "-m",
        *module,
        f"prism.root={root}",
        f"prism.output={output}",
        *SMALL,
        *overrides,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [
        json.loads(line)["data"]
        for line in (output / "metrics.jsonl").read_text().splitlines()
        if '"data"' in line
    ]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_two_nodes_give_the_result_of_two_ranks_on_one(
    digits_folder, discriminator_folder, tmp_path
):
    run(
        ["verl_prism.main", "stage=sft"],
        digits_folder,
        tmp_path / "sft",
        "prism.steps=60",
        "prism.optim.lr=2e-3",
        "prism.sft.examples_per_step=16",
        "prism.optim.warmup_steps=10",
    )
    align = [
        "stage=align",
        "prism.steps=2",
        "prism.optim.lr=1e-3",
        "prism.discriminator.lr=1e-3",
        f"prism.policy={tmp_path / 'sft' / 'policy'}",
        f"prism.discriminator.path={discriminator_folder}",
        "prism.reproducible=true",
    ]
    launcher = ["verl_prism.cluster", "--hosts", "a,b", "--shell", "env PRISM_HOST={host}", "--"]
    nodes = run([*launcher, *align], digits_folder, tmp_path / "nodes")
    ranks = run(
        ["verl_prism.main", *align],
        digits_folder,
        tmp_path / "ranks",
        "prism.hardware.devices_per_node=2",
    )
    assert len(ranks) == 2
    assert ranks[0]["discriminator/pairs"] > 0
    for one, other in zip(
        nodes, ranks, strict=True
    ):  # in the second step, after an update of both networks
        for name in (
            "discriminator/loss",
            "discriminator/pairs",
            "discriminator/grad_norm",
            "actor/grad_norm",
        ):
            assert one[name] == pytest.approx(other[name], abs=1e-5), name
