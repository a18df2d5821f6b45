"""The short form of benchmarks/distill_kills.py; `--kills 20` with `--policy` is the long one."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "distill_kills.py"


def run_benchmark(*arguments: Path | str) -> str:
    command = [sys.executable, BENCHMARK, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_is_paid_twice_after_kills():
    text = run_benchmark("--kills", "4", "--rows", "250")
    assert "none lost or doubled" in text
    assert "none paid twice" in text
    assert "0 killed at work" not in text


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(3600)
def test_nothing_is_paid_twice_after_twenty_kills_with_vllm(pipeline):
    policy = pipeline.root / "sft" / "policy"
    source = pipeline.root / "data" / "train.parquet"
    assert pq.read_metadata(source).num_rows > 600
    text = run_benchmark("--policy", policy, "--source", source, "--rows", "600", "--seconds", "3")
    assert "none paid twice" in text
