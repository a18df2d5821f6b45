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
    return {
        ranks: run(ranks, digits_folder, discriminator_folder, folder / f"ranks{ranks}.pt")
        for ranks in (1, 2)
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
    """The second rank has no valid pair, and as many micro-batches as the first all the same."""
    one, two = results[1], results[2]
    for a, b in zip(one["metrics"], two["metrics"], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(one["weight"], two["weight"], atol=1e-6, rtol=1e-4)


def test_pairs_are_counted_over_all_ranks(results):
    assert (
        results[2]["metrics"][0]["pairs"] == 3 and results[2]["metrics"][0]["valid_ratio"] == 3 / 8
    )


def test_without_a_valid_pair_nothing_is_learnt_and_it_is_counted(results):
    metrics = results[2]["none_valid"]
    assert metrics["updates_skipped"] == 1 and metrics["pairs"] == 0
    assert "perception/accuracy" not in metrics and "grad_norm" not in metrics


def test_what_is_not_finite_on_one_rank_changes_no_parameter_on_any(results):
    for ranks in (1, 2):
        assert (
            results[ranks]["nonfinite"]["nonfinite"] == 1
            and "loss" not in results[ranks]["nonfinite"]
        )
        assert torch.equal(results[ranks]["after"], results[ranks]["weight"])


def test_a_checkpoint_holds_a_discriminator_that_loads(results):
    weight = load_discriminator(results[2]["checkpoint"] / "huggingface").heads["reasoning"].weight
    torch.testing.assert_close(weight, results[2]["weight"])
