"""A child process with all that it starts: stopped as one, leaving nothing behind and touching nobody else's."""

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
    """Runs a command in a session of its own, so that the terminal's Ctrl-C reaches only us.

    We adopt whatever the tree orphans (Ray's daemons, vLLM's engine), so that at the end all that is left of it are
    our descendants. Linux only.
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
        """The exit status of the command, None where it has none after so many seconds.

        Now and then notes the tree's shared memory: Ray kills without clearing up.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(seconds)
        if time.monotonic() > self._noted + NOTE_SECONDS:
            self._held |= self._shared_memory()
            self._noted = time.monotonic()
        return None

    def __exit__(self, *_: object) -> None:
        """Ends every process of the tree, the first one gently, and removes the shared memory that they held."""
        previous = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
        try:
            self._held |= self._shared_memory()
            self._ask_to_end()
            for process in self.alive():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._reap()
            self._remove_shared_memory()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _ask_to_end(self) -> None:
        """SIGTERM to the command: Ray's driver then takes its cluster down. Then wait for stragglers."""
        if self._child.poll() is None:
            self._child.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)

    def alive(self) -> list[psutil.Process]:
        """Every process of the tree, those that it has orphaned too."""
        processes = psutil.Process().children(recursive=True)
        return [p for p in processes if p.pid not in self._foreign and _running(p)]

    def _reap(self) -> None:
        """Waits for all that were killed, and takes the exit status of those that we adopted: nobody else asks for it.

        A killed process is gone only when its memory is freed and its last thread has ended, and its children become
        ours only then.
        """
        deadline = time.monotonic() + GRACE_SECONDS
        while (left := self._left()) and time.monotonic() < deadline:
            for process in (process for process in left if process.pid != self._child.pid):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
            time.sleep(0.02)

    def _left(self) -> list[psutil.Process]:
        """Our own children; the command itself is not among them once its status is known."""
        self._child.poll()
        return [
            process for process in psutil.Process().children() if process.pid not in self._foreign
        ]

    def _remove_shared_memory(self) -> None:
        """What a living process still uses is not ours alone."""
        if self._held:
            used = {name for pid in psutil.pids() for name in _open_files(pid)}
            for path in self._held - {Path(name) for name in used}:
                path.unlink(missing_ok=True)

    def _shared_memory(self) -> set[Path]:
        """Segments in /dev/shm that the tree has open or mapped."""
        return {Path(name) for process in self.alive() for name in _open_files(process.pid)}


def _running(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _open_files(pid: int) -> set[str]:
    names = set()
    with contextlib.suppress(OSError):
        names |= {
            line.split(maxsplit=5)[5]
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
            if SHARED_MEMORY in line
        }
    with contextlib.suppress(OSError):
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                names.add(os.readlink(descriptor.path))
    return {
        name for name in names if name.startswith(SHARED_MEMORY) and not name.endswith("(deleted)")
    }
