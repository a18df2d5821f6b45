"""The log of a stage: the output of its processes, read from a pipe, with secrets removed."""

import fcntl
import os
import select
import struct
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

BLOCK = 1 << 20  # bytes to read at once
LONG_LINE = 1 << 16  # bytes after which a line is written in pieces
END_SECONDS = 5.0


class StageLog:
    """A file that is written through `pipe`, a descriptor to which any process can print.

    A thread reads from the pipe and writes only whole lines, so that a secret printed in pieces is
    recognized. Only the user can read the file: it may contain secrets that we do not know.

    If the file cannot be written, for example on a full disk, the pipe is still read: processes
    that print must not wait.
    """

    def __init__(self, path: Path, redact: Callable[[str], str]) -> None:
        self._path = path
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._end, self.pipe = os.pipe()
        self._redact = redact
        self._unfinished = b""
        self._lost = 0  # bytes
        self._failure = ""  # why they were lost
        self._reading = threading.Lock()
        self._thread = threading.Thread(target=self._follow, name="stage-log", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """What could not be written and why; "" if all was."""
        if not self._lost:
            return ""
        return f"{self._lost} bytes could not be written to {self._path}: {self._failure}"

    def catch_up(self) -> None:
        """Wait until every line printed so far is in the file, for at most END_SECONDS."""
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            with self._reading:
                if not self._thread.is_alive() or _bytes_waiting(self._end) == 0:
                    return
            time.sleep(0.01)

    def close(self) -> None:
        """End the log, after all processes that print to it have ended. The file stays open."""
        os.close(self.pipe)
        self._thread.join(END_SECONDS)
        if not self._thread.is_alive():
            os.close(self._end)

    def _follow(self) -> None:
        while self._copy_block():
            pass

    def _copy_block(self) -> bool:
        """Copy one block from the pipe to the file; return False at the pipe's end."""
        select.select([self._end], [], [])
        with self._reading:
            block = os.read(self._end, BLOCK)
            text = self._unfinished + block
            cut = _last_line_end(text) if block else len(text)
            self._unfinished = text[cut:]
            self._write(text[:cut])
        return bool(block)

    def _write(self, text: bytes) -> None:
        decoded = text.decode(errors="surrogateescape")
        shown = self._redact(decoded).encode(errors="surrogateescape")
        try:
            while shown:
                written = os.write(self.file, shown)
                shown = shown[written:]
        except OSError as error:
            self._lost += len(shown)
            self._failure = error.strerror or str(error)


def _last_line_end(text: bytes) -> int:
    """Return the position after the last line end or, in a very long line, after its last space."""
    end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
    if len(text) - end < LONG_LINE:
        return end
    return max(end, text.rfind(b" ") + 1)


def _bytes_waiting(pipe: int) -> int:
    waiting = fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4)
    return struct.unpack("i", waiting)[0]
