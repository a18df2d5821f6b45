"""The discriminator works where only torch, transformers, safetensors, numpy and Pillow exist."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run_isolated(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, HERE / "isolated.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_one_training_step_needs_no_other_package():
    run = run_isolated(HERE / "one_step.py", "float32", "bfloat16")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(": loss ") == 2


def test_command_needs_no_other_package(dense_folder, tmp_path):
    run = run_isolated("verl_prism.discriminator", "upcycle", dense_folder, tmp_path / "target")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("package", ["verl_prism.config", "verl", "ray"])
def test_other_packages_cannot_be_imported(package, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import {package}")
    assert "ModuleNotFoundError" in run_isolated(script).stderr
