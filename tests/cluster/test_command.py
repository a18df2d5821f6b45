"""The launcher's command line, and the stage on one host: nothing but the stage is started."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from verl_prism.cluster.__main__ import main


@pytest.mark.parametrize("hosts", [[], ["--hosts", "a,"], ["--hosts", "a,a"]])
def test_hosts_are_named_each_once(hosts, capsys):
    assert main([*hosts, "--", "stage=align"]) == 2
    assert (
        capsys.readouterr().err
        == "verl_prism: --hosts wants the names of the hosts, each once: --hosts a,b\n"
    )


def test_a_stage_of_one_host_is_not_started_on_two(capsys):
    assert main(["--hosts", "a,b", "--", "stage=sft"]) == 2
    assert (
        capsys.readouterr().err == "verl_prism: stage sft runs on one host; name one: --hosts a\n"
    )


def test_a_mistake_is_found_before_any_host_is_asked(capsys):
    assert (
        main(["--hosts", "a,b", "--shell", "false {host}", "--", "stage=align", "prism.stepps=3"])
        == 2
    )
    assert "unknown key prism.stepps; did you mean prism.steps?" in capsys.readouterr().err


def launch_on_one_host(root, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "verl_prism.cluster", "--hosts", "here", "--"]
    return subprocess.Popen(
        [*command, "stage=sft", f"prism.root={root}", *overrides], stderr=subprocess.PIPE, text=True
    )


def test_the_exit_code_is_the_stages(tmp_path):
    run = launch_on_one_host(tmp_path)
    assert run.wait(timeout=60) == 2
    assert f"prism.policy={tmp_path}/base: no such folder" in run.stderr.read()


def test_asked_to_end_before_the_stage_listens_it_is_to_be_started_again(tmp_path):
    run = launch_on_one_host(tmp_path)
    while not (stage := psutil.Process(run.pid).children()):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGUSR1)
    assert run.wait(timeout=60) == 75
    assert not stage[0].is_running()
