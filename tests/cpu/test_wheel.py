import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    files = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "verl_prism", "trainer_configs"]
    subprocess.run(["cp", "-r", *(ROOT / name for name in files), source], check=True)
    build = ["pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", source / "dist"]
    subprocess.run([sys.executable, "-m", *build, source], check=True)
    (wheel,) = (source / "dist").glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_configs_are_inside(wheel_names):
    configs = {
        f"verl_prism/{path.relative_to(ROOT)}"
        for path in (ROOT / "trainer_configs").rglob("*.yaml")
    }
    assert configs
    assert configs <= wheel_names


def test_every_module_is_inside(wheel_names):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "verl_prism").rglob("*.py")}
    assert modules <= wheel_names


def test_import_hooks_are_installed_beside_the_package(wheel_names):
    assert "verl_prism_cpu.pth" in wheel_names
