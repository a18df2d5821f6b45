"""The discriminator in the configuration of real runs, on one rank and two, also on torch 2.11.

That is bfloat16, gradient checkpointing and the load-balancing loss. To use an environment that has
torch 2.11 already, instead of installing one:

    OTHER_TORCH=/path/to/python python -m pytest -m slow tests/discriminator/test_precision.py
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
DTYPES = [torch.float32, torch.bfloat16]
OTHER_TORCH = ["torch==2.11.0", "transformers", "safetensors", "numpy", "Pillow"]  # 5 GB on PyPI


def results_of(python: str | Path, scoring: str, folder: Path) -> dict[int, dict]:
    """Return the results of one rank and of two, by number of ranks."""
    return {ranks: run(python, scoring, ranks, folder / f"{ranks}.pt") for ranks in (1, 2)}


def run(python: str | Path, scoring: str, ranks: int, file: Path) -> dict:
    command = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    script = [HERE / "precision_ranks.py", file, scoring]
    done = subprocess.run([*command, *script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module", params=["head", "likelihood"])
def results(request, tmp_path_factory):
    return results_of(sys.executable, request.param, tmp_path_factory.mktemp("precision"))


def worst(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to the largest entry of its tensor."""
    assert ours.keys() == theirs.keys()
    differences = []
    for name, gradient in theirs.items():
        differences.append((ours[name] - gradient).abs().max() / gradient.abs().max())
    return max(differences).item()


def check(results: dict[int, dict], dtype: torch.dtype) -> None:
    """Two ranks make the update of one, the experts compute in `dtype`, and scores in float32."""
    one, two = results[1][dtype], results[2][dtype]
    assert worst(two["gradients"], one["gradients"]) < 1e-5
    assert one["metrics"].keys() == two["metrics"].keys()
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert one["experts"] == two["experts"] == {dtype}
    assert (one["scores"] != one["scores"].bfloat16().float()).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_ranks_make_the_update_of_one(results, dtype):
    check(results, dtype)


def test_bfloat16_gradients_are_close_to_those_of_float32(results):
    exact, rounded = (results[1][dtype]["gradients"] for dtype in DTYPES)
    assert 1e-4 < worst(rounded, exact) < 0.15


@pytest.fixture
def other_python(tmp_path):
    if given := os.environ.get("OTHER_TORCH"):
        return given
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *OTHER_TORCH], check=True)
    return python


@pytest.mark.slow
def test_two_ranks_make_the_update_of_one_on_torch_2_11(other_python, tmp_path):
    """There a layer's inputs are not cast again when it is recomputed; 2.13 hides that."""
    results = results_of(other_python, "head", tmp_path)
    for dtype in DTYPES:
        check(results, dtype)
