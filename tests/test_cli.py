"""The command `verl-prism`, and `python -m verl_prism`."""

import subprocess
import sys
from importlib.metadata import version

from verl_prism import cli


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "verl_prism", "--help"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == cli.HELP


def test_an_unknown_command_lists_the_known_ones(capsys):
    assert cli.main(["train"]) == 2
    shown = capsys.readouterr().err
    assert "there is no command 'train'" in shown
    assert "verl-prism COMMAND" in shown
    assert cli.main([]) == 2


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"verl-prism {version('verl_prism')}\n"
