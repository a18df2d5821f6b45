"""The command line of verl_prism.cluster, and a stage on one host, which needs no separate Ray."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from verl_prism.cluster.__main__ import HELP, main


@pytest.mark.parametrize("hosts", [[], ["--hosts", "a,"], ["--hosts", "a,a"]])
def test_each_host_must_be_named_once(hosts, capsys):
    assert main([*hosts, "--", "stage=align"]) == 2
    expected = "--hosts needs the names of the hosts, each once, such as --hosts a,b"
    assert capsys.readouterr().err == f"verl_prism: {expected}\n"


def test_help(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == HELP


def test_a_mistyped_key_is_found_before_any_host_is_contacted(capsys):
    shell = ["--shell", "false {host}"]
    assert main(["--hosts", "a,b", *shell, "--", "stage=align", "prism.stepps=3"]) == 2
    assert "unknown key prism.stepps; did you mean prism.steps?" in capsys.readouterr().err


def launch_on_one_host(root, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "verl_prism.cluster", "--hosts", "here", "--"]
    return subprocess.Popen(
        [*command, "stage=sft", f"prism.root={root}", *overrides], stderr=subprocess.PIPE, text=True
    )


def test_the_exit_code_is_that_of_the_stage(tmp_path):
    run = launch_on_one_host(tmp_path)
    assert run.wait(timeout=60) == 2
    assert f"prism.policy={tmp_path}/base: no such folder" in run.stderr.read()


def test_a_request_to_end_before_the_stage_handles_it_exits_with_75(tmp_path):
    run = launch_on_one_host(tmp_path)
    while not (stage := psutil.Process(run.pid).children()):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGUSR1)
    assert run.wait(timeout=60) == 75
    assert not stage[0].is_running()
