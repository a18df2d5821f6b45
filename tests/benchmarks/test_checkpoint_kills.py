"""The short form of benchmarks/checkpoint_kills.py; `--kills 200` is the long one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "checkpoint_kills.py"


def kill(times: int, *arguments: Path | str) -> str:
    command = [sys.executable, BENCHMARK, "--kills", str(times), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_after_each_kill_a_complete_checkpoint_is_found(dense_folder, discriminator_folder):
    said = kill(10, "--models", dense_folder, discriminator_folder)
    assert said.startswith("10 kills in ") and "every start found a complete checkpoint" in said
    interrupted = re.findall(r"(writing|renamed|removing)[^:]*: (\d+)", said)
    assert sum(int(count) for _, count in interrupted) > 0, "some were killed while they saved"


@pytest.mark.slow
def test_a_half_one_that_is_opened_is_noticed(dense_folder, discriminator_folder):
    command = [
        sys.executable,
        BENCHMARK,
        "--kills",
        "20",
        "--trap",
        "--models",
        dense_folder,
        discriminator_folder,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.endswith("a start failed: exit status 3\n")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_after_each_of_two_hundred():
    assert kill(200).startswith("200 kills in ")
