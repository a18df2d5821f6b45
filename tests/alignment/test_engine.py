"""The discriminator under verl's FSDP2 engine on gloo: one rank and two give the same update."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from verl_prism.cpu.environment import cpu_environment
from verl_prism.discriminator import load_discriminator


@pytest.fixture(scope="module")
def results(digits_folder, discriminator_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    files = {ranks: folder / f"ranks{ranks}.pt" for ranks in (1, 2)}
    return {
        ranks: run(ranks, digits_folder, discriminator_folder, file)
        for ranks, file in files.items()
    }


def run(ranks, digits_folder, discriminator_folder, result):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
    ]
    script = [
        Path(__file__).parent / "engine_ranks.py",
        discriminator_folder,
        digits_folder / "data" / "train.parquet",
    ]
    done = subprocess.run(
        [*command, *script, result],
        env=os.environ | cpu_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(result, weights_only=True) | {"checkpoint": Path(f"{result}.checkpoint")}


def test_two_ranks_give_the_update_of_one(results):
    """The second rank has no valid pair but the same number of micro-batches as the first."""
    one, two = results[1], results[2]
    for a, b in zip(one["metrics"], two["metrics"], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(one["weight"], two["weight"], atol=1e-6, rtol=1e-4)


def test_pairs_are_counted_over_all_ranks(results):
    metrics = results[2]["metrics"][0]
    assert metrics["pairs"] == 3
    assert metrics["valid_ratio"] == 3 / 8


def test_update_without_valid_pair_is_skipped_and_counted(results):
    metrics = results[2]["none_valid"]
    assert metrics["updates_skipped"] == 1
    assert metrics["pairs"] == 0
    assert not {"perception/accuracy", "grad_norm"} & metrics.keys()


def test_non_finite_values_on_one_rank_change_no_parameter_on_any(results):
    for ranks in (1, 2):
        metrics = results[ranks]["nonfinite"]
        assert metrics["nonfinite"] == 1
        assert "loss" not in metrics
        assert torch.equal(results[ranks]["after"], results[ranks]["weight"])


def test_checkpoint_contains_a_loadable_discriminator(results):
    weight = load_discriminator(results[2]["checkpoint"] / "huggingface").heads["reasoning"].weight
    torch.testing.assert_close(weight, results[2]["weight"])
