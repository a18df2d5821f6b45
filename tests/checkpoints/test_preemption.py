"""SIGUSR1 is a request to the launcher only."""

import os
import signal
import subprocess
import sys

import pytest

from verl_prism.checkpoints.preemption import end_requested, ignore_requests, listen_for_requests
from verl_prism.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    handler = signal.getsignal(signal.SIGUSR1)
    yield RunFolder(tmp_path)
    signal.signal(signal.SIGUSR1, handler)


def test_the_signal_leaves_a_request(run):
    listen_for_requests(run)
    assert not end_requested(run)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert end_requested(run)


def test_child_processes_survive_the_signal(run):
    """A batch system may send it to every process of a job."""
    ignore_requests()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    listen_for_requests(run)
    child.send_signal(signal.SIGUSR1)
    child.communicate(b"\n")
    assert child.returncode == 0
    assert not end_requested(run)
