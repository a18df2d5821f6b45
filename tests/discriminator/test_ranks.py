"""Two ranks with FSDP2 on gloo make the update of one, whichever groups each rank has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from verl_prism.discriminator import Ranks

CASES = (
    "all alike",
    "one rank without an image",
    "one rank without a valid pair",
    "a rank without a group",
)


@pytest.fixture(scope="module")
def results(digits_folder, discriminator_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return {
        ranks: run(ranks, digits_folder, discriminator_folder, folder / f"{ranks}.pt")
        for ranks in (1, 2)
    }


def run(ranks, digits_folder, discriminator_folder, file):
    script = [Path(__file__).parent / "step_ranks.py", discriminator_folder]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        *script,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [digits_folder / "data" / "train.parquet", file]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_gradients_of_one(results, case):
    one, two = results[1][case], results[2][case]
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one["gradients"].items():
        worst = (two["gradients"][name] - gradient).abs().max()
        assert worst <= 1e-5 * gradient.abs().max(), f"{name}: {worst} of {gradient.abs().max()}"


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_report_the_metrics_of_one(results, case):
    one, two = results[1][case]["metrics"], results[2][case]["metrics"]
    assert one.keys() == two.keys()
    left_out = {"valid_ratio", "busiest_expert/prompt"}
    for name in one.keys() - left_out:
        assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


def test_non_finite_values_on_one_rank_are_reported_by_all(results):
    found = results[2]["not finite on one rank"]
    assert found["metrics"]["nonfinite"] == 1
    assert not found["gradients"]


def test_ranks_share_work_and_all_get_the_results_in_order(results):
    assert results[1]["shared"] == [(item, 0) for item in range(5)]
    assert results[2]["shared"] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]


def test_one_rank_without_a_process_group():
    ranks = Ranks()
    assert (ranks.world_size, ranks.rank, ranks.sum([2.0, 3.0]), ranks.max(4)) == (
        1,
        0,
        [2.0, 3.0],
        4,
    )
