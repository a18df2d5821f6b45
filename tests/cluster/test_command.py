"""The command line of verl_prism.cluster, and a stage on one host, which needs no separate Ray."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from verl_prism.cluster.__main__ import HELP, main
from verl_prism.cluster.nodes import RayNodes
from verl_prism.errors import UserError


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


def test_data_is_checked_before_any_host_is_contacted(tmp_path, capfd):
    shell = ["--shell", f"touch {tmp_path}/{{host}}"]
    assert main(["--hosts", "a,b", *shell, "--", "stage=sft", f"prism.root={tmp_path}"]) == 2
    assert f"prism.policy={tmp_path}/base: no such folder" in capfd.readouterr().err
    assert not (tmp_path / "a").exists()


def ray_nodes(shell: str, logs: Path) -> RayNodes:
    return RayNodes(
        ["a", "b"],
        shell=shell,
        overrides=[],
        devices_per_node=1,
        devices=2,
        logs=logs,
        timeout=2.0,
    )


@pytest.mark.parametrize(
    ("shell", "message"),
    [
        ("nosuchshell {host}", "--shell: nosuchshell cannot be started: No such file or directory"),
        ("ssh 'a {host}", '--shell: "ssh \'a {host}" is not a command: No closing quotation'),
        (
            "bash -c 'echo Welcome to {host}; exit 7' --",
            "Ray's head on a ended with status 7 before it had started; see {logs}/a.log",
        ),
        (
            "bash -c 'echo Welcome to {host}; exec sleep 60' --",
            "Ray's head on a did not start within 2 s; see {logs}/a.log",
        ),
    ],
)
def test_a_shell_that_does_not_start_the_head(tmp_path, monkeypatch, shell, message):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # else the launcher would set it here
    nodes = ray_nodes(shell, tmp_path)
    with pytest.raises(UserError) as error, nodes:
        pass
    assert str(error.value).startswith(message.replace("{logs}", str(tmp_path)))


def test_a_head_that_does_not_answer_is_named_and_sigterm_still_stops_the_stage(
    tmp_path, monkeypatch
):
    import ray

    def init(address, **_):
        """Replace the handler as `ray.init` does, which would try to connect for minutes."""
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        raise ConnectionError("timed out")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    handler = signal.getsignal(signal.SIGTERM)
    nodes = ray_nodes("bash -c 'echo address of Ray: 192.0.2.1:6379; exec cat' --", tmp_path)
    expected = "cannot connect to Ray's head at 192.0.2.1:6379: timed out; see "
    with pytest.raises(UserError, match=expected), nodes:
        pass
    assert signal.getsignal(signal.SIGTERM) == handler


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


def test_a_stage_that_is_stopped_before_it_handles_signals_exits_with_130(tmp_path):
    run = launch_on_one_host(tmp_path)
    while not (stage := psutil.Process(run.pid).children()):
        assert run.poll() is None
        time.sleep(0.01)
    while "verl_prism.main" not in stage[0].cmdline():
        time.sleep(0.01)
    time.sleep(0.1)  # the launcher waits for it now
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 130
    assert not stage[0].is_running()
