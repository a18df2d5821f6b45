"""However a plan spreads groups over ranks, each response gets its score and the gradient is equal.

Random groups with invalid responses, duplicates and prompts without an image run on 1 to 8 ranks
with FSDP2 on gloo. Some of the ranks have no group, or fewer packs than others.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SEEDS = 4


def run(world_sizes, digits_folder, discriminator_folder, out):
    script = Path(__file__).parent / "plan_ranks.py"
    train = digits_folder / "data" / "train.parquet"
    arguments = [discriminator_folder, train, SEEDS, out, *world_sizes]
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{size}.pt", weights_only=True) for size in world_sizes]


@pytest.mark.parametrize(
    "world_sizes", [(2, 3), pytest.param((4, 5, 6, 7, 8), marks=pytest.mark.slow)]
)
def test_ranks_give_the_scores_and_gradients_of_one(
    world_sizes, digits_folder, discriminator_folder, tmp_path
):
    expected, *found = run([1, *world_sizes], digits_folder, discriminator_folder, tmp_path)
    for results in found:
        for one, many in zip(expected["steps"], results["steps"], strict=True):
            assert one["scores"]
            assert many["scores"].keys() == one["scores"].keys()
            for key, scores in one["scores"].items():
                assert many["scores"][key] == pytest.approx(scores, abs=1e-5), key
            assert_equal_gradients(many["gradients"], one["gradients"])
            assert_equal_metrics(many["metrics"], one["metrics"])
        ranks = len(results["shares"])
        if ranks in (2, 4, 8):  # the sizes of the four experts do not divide among 3, 5 or 7 ranks
            assert results["shares"] == pytest.approx([1 / ranks] * ranks)


def assert_equal_gradients(ours, expected):
    """Within 1e-5, relative to the largest number of each tensor."""
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        worst = (ours[name] - gradient).abs().max()
        assert worst <= 1e-5 * gradient.abs().max(), f"{name}: {worst} of {gradient.abs().max()}"


def assert_equal_metrics(ours, expected):
    """All but the load of experts, to which a part of a group adds its prompt and teacher."""
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        if not name.startswith("busiest_expert"):
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
