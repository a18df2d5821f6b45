"""The engine of the discriminator as on a GPU: bfloat16, checkpointing and the balance loss."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from verl_prism.cpu.environment import cpu_environment
from verl_prism.discriminator import upcycle


@pytest.fixture(scope="module")
def results(digits_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    upcycle(digits_folder / "base", folder / "discriminator", experts=8)
    train = digits_folder / "data" / "train.parquet"
    found = {}
    for ranks in (1, 2):
        file = folder / f"{ranks}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        script = [f"--nproc-per-node={ranks}", Path(__file__).parent / "engine_precision.py"]
        done = subprocess.run(
            [*command, *script, folder / "discriminator", train, file],
            env=os.environ | cpu_environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[ranks] = torch.load(file, weights_only=True)
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_experts_compute_in_bfloat16_with_float32_weights(results, ranks):
    assert results[ranks]["experts"] == {torch.bfloat16}
    assert results[ranks]["master"] == {torch.float32}
    assert results[ranks]["scores"].dtype == torch.float32


def test_two_ranks_make_the_updates_of_one(results):
    for one, two in zip(results[1]["metrics"], results[2]["metrics"], strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert two[name] == pytest.approx(one[name], rel=2e-2, abs=2e-3), name
