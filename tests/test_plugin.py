import os
import subprocess
import sys

import pytest

from verl_prism import plugin
from verl_prism.errors import UserError


def run_python(script: str, **env: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_verl_registers_the_cpu_platform():
    script = """
import verl
from verl.plugin.platform import get_platform
print(type(get_platform()).__name__)
"""
    assert run_python(script, VERL_PLATFORM="cpu").splitlines()[-1] == "PlatformCPU"


def test_importing_verl_leaves_other_platforms_unchanged():
    script = """
import sys, verl
print('verl_prism.plugin' in sys.modules, 'verl_prism.cpu.platform' in sys.modules)
"""
    assert run_python(script, VERL_PLATFORM="nvidia").splitlines()[-1] == "True False"


def test_a_worker_group_uses_the_launchers_folder_for_its_file_store():
    script = "import os, verl_prism.plugin; print(os.environ.get('DIST_INIT_METHOD'))"
    worker = {"WG_BACKEND": "ray", "WG_PREFIX": "abcdef"}
    folder = {"VERL_PRISM_STORES": "/scratch"}
    assert run_python(script, **worker, **folder) == "file:///scratch/abcdef\n"
    assert run_python(script, **worker) == "None\n"
    assert run_python(script, **folder) == "None\n"


def test_assert_loaded_accepts_this_installation():
    plugin.assert_loaded()


@pytest.mark.parametrize("plugins", ["none", "another_plugin"])
def test_assert_loaded_names_the_variable_that_excludes_the_plugin(monkeypatch, plugins):
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", plugins)
    message = f"VERL_USE_EXTERNAL_PLUGINS={plugins} keeps verl from loading verl_prism"
    with pytest.raises(UserError, match=message):
        plugin.assert_loaded()


def test_assert_loaded_says_how_to_install(monkeypatch):
    monkeypatch.setattr(plugin, "entry_points", lambda group: ())
    with pytest.raises(UserError, match=r"pip install -e \. --no-deps"):
        plugin.assert_loaded()
