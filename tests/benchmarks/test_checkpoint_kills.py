"""The short form of benchmarks/checkpoint_kills.py; `--kills 200` is the long one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "checkpoint_kills.py"


def run_benchmark(kills: int, *arguments: Path | str) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCHMARK, "--kills", str(kills), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_after_each_kill_a_complete_checkpoint_is_found(dense_folder, discriminator_folder):
    done = run_benchmark(10, "--models", dense_folder, discriminator_folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 kills in ")
    assert "every start found a complete checkpoint" in done.stdout
    interrupted = re.findall(r"(?:writing|renamed|removing)[^:]*: (\d+)", done.stdout)
    assert sum(map(int, interrupted)) > 0, "some were killed while they saved"


@pytest.mark.slow
def test_an_opened_unfinished_file_is_noticed(dense_folder, discriminator_folder):
    done = run_benchmark(20, "--trap", "--models", dense_folder, discriminator_folder)
    assert done.returncode == 1
    assert done.stderr.endswith("a start failed: exit status 3\n")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_after_each_of_two_hundred_kills():
    done = run_benchmark(200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("200 kills in ")
