"""SIGUSR1 is a request to the launcher alone."""

import os
import signal
import subprocess
import sys

import pytest

from verl_prism.checkpoints.preemption import end_requested, ignore_requests, listen_for_requests
from verl_prism.compose import compose_run


@pytest.fixture
def prism(tmp_path):
    handler = signal.getsignal(signal.SIGUSR1)
    yield compose_run(["stage=align", f"prism.output={tmp_path}"])[1]
    signal.signal(signal.SIGUSR1, handler)


def test_the_signal_leaves_a_request(prism):
    listen_for_requests(prism)
    assert not end_requested(prism)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert end_requested(prism)


def test_what_the_launcher_starts_outlives_it(prism):
    """A batch system may send the signal to every process of a job."""
    ignore_requests()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    listen_for_requests(prism)
    child.send_signal(signal.SIGUSR1)
    child.communicate(b"\n")
    assert child.returncode == 0 and not end_requested(prism)
