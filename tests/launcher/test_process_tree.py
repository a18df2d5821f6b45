"""A stopped run leaves no process and no shared memory, and spares those of others."""

import os
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

import psutil
import pytest

from verl_prism.launcher.process_tree import ProcessTree

# As in Ray and vLLM, a daemon with its own session ignores SIGTERM and holds shared memory.
DAEMON = """
import signal, sys, time
from multiprocessing import resource_tracker, shared_memory
signal.signal(signal.SIGTERM, signal.SIG_IGN)
segment = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(segment._name, "shared_memory")
open(sys.argv[1], "w").write(segment.name)
time.sleep(300)
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], start_new_session=True)
if sys.argv[3] == "orphan":
    time.sleep(0.1); sys.exit(0)
time.sleep(300)
"""


def segment_name(file: Path) -> str:
    while not (file.exists() and file.read_text()):
        time.sleep(0.05)
    return file.read_text()


@pytest.mark.parametrize("kind", ["child", "orphan"])
def test_the_whole_tree_is_stopped(kind, tmp_path):
    others = psutil.Process().children(recursive=True)
    command = [sys.executable, "-c", PARENT, DAEMON, str(tmp_path / "name"), kind]
    with ProcessTree(command, os.environ) as tree:
        name = segment_name(tmp_path / "name")
        if kind == "orphan":
            assert tree.wait(30) == 0
        descendants = [p for p in psutil.Process().children(recursive=True) if p not in others]
        assert Path("/dev/shm", name).exists()
        started = time.monotonic()
    assert time.monotonic() - started < 12
    assert not Path("/dev/shm", name).exists()
    assert not [p for p in descendants if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_other_processes_are_spared(tmp_path):
    stranger = subprocess.Popen([sys.executable, "-c", DAEMON, str(tmp_path / "name")])
    segment = shared_memory.SharedMemory(segment_name(tmp_path / "name"))
    try:
        with ProcessTree([sys.executable, "-c", "import time; time.sleep(300)"], dict(os.environ)):
            pass
        assert stranger.poll() is None
        assert Path("/dev/shm", segment.name).exists()
    finally:
        stranger.kill()
        segment.close()
        segment.unlink()


def test_shared_memory_that_another_process_uses_is_kept(tmp_path):
    stranger = subprocess.Popen([sys.executable, "-c", DAEMON, str(tmp_path / "name")])
    name = segment_name(tmp_path / "name")
    reader = f"import time; file = open('/dev/shm/{name}', 'rb'); time.sleep(300)"
    try:
        with ProcessTree([sys.executable, "-c", reader], dict(os.environ)):
            time.sleep(1)
        assert Path("/dev/shm", name).exists()
    finally:
        stranger.kill()
        Path("/dev/shm", name).unlink()


def test_the_exit_status_is_the_commands(tmp_path):
    with ProcessTree([sys.executable, "-c", "raise SystemExit(7)"], dict(os.environ)) as tree:
        assert tree.wait(30) == 7
