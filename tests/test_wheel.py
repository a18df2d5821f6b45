"""The wheel works in an empty folder, without the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from verl_prism import cli

ROOT = Path(__file__).parents[1]
PARTS = ("verl_prism", "trainer_configs", "examples", "setup.py", "pyproject.toml")
FILES = ("README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The content of the wheel, built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PARTS, *FILES):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    wheels = tmp_path_factory.mktemp("wheels")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", wheels, source], check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    target = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def run(installed: Path, folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_is_the_installed_one(installed, tmp_path):
    where = "import verl_prism; print(verl_prism.__file__)"
    assert run(installed, tmp_path, "-c", where).strip() == f"{installed}/verl_prism/__init__.py"


@pytest.mark.parametrize("command", [*cli.MODULES, "demo"])
def test_each_command_explains_itself(installed, tmp_path, command):
    assert "verl" in run(installed, tmp_path, "-m", "verl_prism.cli", command, "--help")


def test_a_stage_composes_its_configuration(installed, tmp_path):
    command = ("-m", "verl_prism.cli", "run", "stage=dpo", "--cfg", "job", "--package", "prism")
    assert "pairs_per_step: 32" in run(installed, tmp_path, *command)


def test_the_demo_finds_its_scripts_and_makes_its_data(installed, tmp_path):
    where = "from verl_prism.cli import digits_folder; print(digits_folder())"
    folder = Path(run(installed, tmp_path, "-c", where).strip())
    assert folder.is_relative_to(installed)
    names = {file.name for file in folder.iterdir()}
    assert {"run.sh", "data.py", "model.py", "metrics.py", "tasks.py"} <= names
    run(installed, tmp_path, str(folder / "data.py"), "--out", str(tmp_path / "data"))
    assert (tmp_path / "data" / "sft.parquet").exists()


@pytest.mark.parametrize(
    "pattern",
    ["*.py", "*.jinja", "*.js", "*.css", "*.txt"],
)
def test_every_file_of_the_package_is_in_the_wheel(installed, pattern):
    names = [file.relative_to(ROOT) for file in (ROOT / "verl_prism").rglob(pattern)]
    assert names
    assert [name for name in names if not (installed / name).exists()] == []


def test_the_configs_and_the_import_hooks_are_in_the_wheel(installed):
    configs = [file.relative_to(ROOT) for file in (ROOT / "trainer_configs").rglob("*.yaml")]
    assert configs
    assert all((installed / "verl_prism" / config).exists() for config in configs)
    assert (installed / "verl_prism_cpu.pth").exists()
