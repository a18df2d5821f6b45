"""A child process and everything it starts. At the end all of it is stopped and cleaned up."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 5.0
NOTE_SECONDS = 10.0
SHARED_MEMORY = "/dev/shm/"


class ProcessTree:
    """Runs a command in a session of its own, so that the terminal's Ctrl-C only reaches us.

    This process adopts what the tree orphans, such as Ray's daemons and vLLM's engine. All that is
    left of the tree at the end is therefore among our descendants. Processes that existed before
    are not touched. Linux only.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._foreign = {child.pid for child in psutil.Process().children(recursive=True)}
        self._held: set[Path] = set()
        self._noted = 0.0

    def __enter__(self) -> "ProcessTree":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._child = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        return self

    def wait(self, seconds: float) -> int | None:
        """Return the exit status of the command, or None if it still runs after `seconds`.

        Also records the tree's shared memory from time to time: a process that Ray kills does not
        clean up.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(seconds)
        if time.monotonic() > self._noted + NOTE_SECONDS:
            self._held |= self._shared_memory()
            self._noted = time.monotonic()
        return None

    def __exit__(self, *_: object) -> None:
        """Stop every process of the tree, and remove the shared memory that they held."""
        previous = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
        try:
            self._held |= self._shared_memory()
            self._terminate()
            for process in self.alive():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._reap()
            self._remove_shared_memory()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _terminate(self) -> None:
        """Send SIGTERM to the command, on which Ray's driver stops its cluster, and wait."""
        if self._child.poll() is None:
            self._child.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)

    def alive(self) -> list[psutil.Process]:
        """Return every running process of the tree, including orphaned ones."""
        processes = psutil.Process().children(recursive=True)
        return [p for p in processes if p.pid not in self._foreign and _running(p)]

    def _reap(self) -> None:
        """Wait for killed processes, and collect the exit status of those that we adopted.

        A killed process is only gone when its memory is freed and its last thread has ended. Then
        we adopt its children.
        """
        deadline = time.monotonic() + GRACE_SECONDS
        while (children := self._children()) and time.monotonic() < deadline:
            for process in children:
                if process.pid != self._child.pid:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(process.pid, os.WNOHANG)
            time.sleep(0.02)

    def _children(self) -> list[psutil.Process]:
        """Return our own children, without the command once its exit status is known."""
        self._child.poll()
        children = psutil.Process().children()
        return [process for process in children if process.pid not in self._foreign]

    def _remove_shared_memory(self) -> None:
        """Remove the segments that no living process uses."""
        if not self._held:
            return
        used: set[str] = set()
        for pid in psutil.pids():
            used |= _open_segments(pid)
        for path in self._held:
            if str(path) not in used:
                path.unlink(missing_ok=True)

    def _shared_memory(self) -> set[Path]:
        """Return the segments in /dev/shm that the tree has open or mapped."""
        segments: set[str] = set()
        for process in self.alive():
            segments |= _open_segments(process.pid)
        return {Path(name) for name in segments}


def _running(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _open_segments(pid: int) -> set[str]:
    names = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if SHARED_MEMORY in line:
                names.add(line.split(maxsplit=5)[5])
    with contextlib.suppress(OSError):
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                names.add(os.readlink(descriptor.path))
    segments = set()
    for name in names:
        if name.startswith(SHARED_MEMORY) and not name.endswith("(deleted)"):
            segments.add(name)
    return segments
