"""The log of a stage: what its processes print, read from a pipe, without secrets."""

import fcntl
import os
import select
import struct
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

BLOCK = 1 << 20  # bytes read at once
LONG_LINE = 1 << 16  # bytes after which a line is written piece by piece
END_SECONDS = 5.0


class StageLog:
    """A file that is written through `pipe`, a descriptor to which any number of processes may print.

    A thread takes whole lines from the pipe, so that no secret is met in halves, and writes them at once. Only the user
    may read the file: a secret that nobody told us of may be in it.
    """

    def __init__(self, path: Path, redact: Callable[[str], str]) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._end, self.pipe = os.pipe()
        self._redact = redact
        self._unfinished = b""
        self._reading = threading.Lock()
        self._thread = threading.Thread(target=self._follow, name="stage-log", daemon=True)
        self._thread.start()

    def catch_up(self) -> None:
        """Returns when each line that has been printed is in the file, or after END_SECONDS."""
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            with self._reading:
                if not self._thread.is_alive() or _waiting(self._end) == 0:
                    return
            time.sleep(0.01)

    def close(self) -> None:
        """Ends the log, once all who print to it have ended. The file stays open."""
        os.close(self.pipe)
        self._thread.join(END_SECONDS)
        if not self._thread.is_alive():
            os.close(self._end)

    def _follow(self) -> None:
        while self._read():
            pass

    def _read(self) -> bool:
        """One block from the pipe to the file; False at the pipe's end."""
        select.select([self._end], [], [])
        with self._reading:
            block = os.read(self._end, BLOCK)
            text = self._unfinished + block
            cut = _last_line_end(text) if block else len(text)
            self._unfinished = text[cut:]
            shown = self._redact(text[:cut].decode(errors="surrogateescape")).encode(
                errors="surrogateescape"
            )
            while shown:
                shown = shown[os.write(self.file, shown) :]
        return bool(block)


def _last_line_end(text: bytes) -> int:
    """Where to cut: behind the last line end or, in a line that does not end, behind its last blank."""
    end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
    return end if len(text) - end < LONG_LINE else max(end, text.rfind(b" ") + 1)


def _waiting(pipe: int) -> int:
    """Bytes in the pipe."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0]
