"""Alignment on two "hosts" with one rank each gives the result of one host with two ranks."""

import json
import subprocess
import sys

import pytest

from verl_prism.run_folder import RunFolder

METRICS = (
    "discriminator/loss",
    "discriminator/pairs",
    "discriminator/grad_norm",
    "actor/grad_norm",
)
SMALL = ["prism.rollout.prompts_per_step=4", "prism.rollout.samples_per_prompt=4"]


def run(module: list[str], root, output, *overrides: str) -> list[dict]:
    """Run a command and return the metrics of each step."""
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
    records = map(json.loads, RunFolder(output).metrics.read_text().splitlines())
    return [record["data"] for record in records if "data" in record]


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
    # The second step comes after an update of both networks.
    for of_nodes, of_ranks in zip(nodes, ranks, strict=True):
        for name in METRICS:
            assert of_nodes[name] == pytest.approx(of_ranks[name], abs=1e-5), name


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_each_rank_has_one_response(pipeline, tmp_path):
    """As with the paper's 64 responses per step on eight nodes. `run` checks that it succeeds."""
    steps = run(
        ["verl_prism.main", "stage=align"],
        pipeline.root,
        tmp_path,
        "prism.steps=1",
        "prism.rollout.prompts_per_step=1",
        "prism.rollout.samples_per_prompt=2",
        "prism.hardware.devices_per_node=2",
    )
    assert len(steps) == 1
