"""The discriminator under verl's FSDP2 engine on gloo: one rank and two give the same update.

The rows of three groups are planned, read and scored as the driver and the workers do together.
"""

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
    one, two = results[1], results[2]
    for a, b in zip(one["metrics"], two["metrics"], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(one["weight"], two["weight"], atol=1e-6, rtol=1e-4)


def test_each_valid_row_gets_its_score_once(results):
    (one,) = results[1]["scores"]
    first, second = results[2]["scores"]
    assert not first.keys() & second.keys()
    both = first | second
    assert both.keys() == one.keys()
    assert {key[:3] for key in one} == {"0_0", "0_2", "0_4", "1_1", "1_2", "1_3", "1_4"}
    for key, scores in one.items():
        assert both[key] == pytest.approx(scores, abs=1e-5)
    assert len(set(one.values())) == len(one)


def test_each_rank_reads_its_rows_and_each_image_once(results):
    """The images of a group are read with one of the rank's rows of the group."""
    read_by = []
    for reads in results[2]["reads"]:
        assert len(reads) == len(set(reads))
        images = [key for key, name in reads if name == "multi_modal_inputs"]
        groups = [key[0] for key in images]
        assert len(groups) == len(set(groups))
        rows = {key for key, name in reads if name == "extra_fields"}
        assert set(images) <= rows
        assert {key[0] for key in rows} == set(groups)
        read_by.append(rows)
    assert not read_by[0] & read_by[1]
    assert len(read_by[0] | read_by[1]) == 15


def test_pairs_are_counted_over_all_ranks(results):
    metrics = results[2]["metrics"][0]
    assert metrics["pairs"] == 7
    assert metrics["valid_ratio"] == 7 / 15


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
