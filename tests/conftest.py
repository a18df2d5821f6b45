"""A tiny real Qwen3-VL from the digits example, the discriminator upcycled from it, and a prompt with its picture."""

import os
import subprocess
import sys
from pathlib import Path

# Before torch is loaded: its threads wait asleep, and vLLM's sampler is not compiled.
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "TORCH_COMPILE_DISABLE": "1"}

import pyarrow.parquet as pq
import pytest
from transformers import AutoProcessor, AutoTokenizer

from verl_prism.discriminator import load_discriminator
from verl_prism.discriminator.prompts import tokenize_prompt
from verl_prism.discriminator.upcycling import upcycle

DIGITS = Path(__file__).parents[1] / "examples" / "digits"


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, DIGITS / "data.py", "--out", folder / "data"], check=True)
    subprocess.run(
        [sys.executable, DIGITS / "model.py", "--data", folder / "data", "--out", folder / "base"], check=True
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
    return [tokenize_prompt(processor, row) for row in rows]


@pytest.fixture(scope="session")
def prompt(prompts):
    return prompts[0]
