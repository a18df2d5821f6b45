"""Stacks of all processes of a run. Each Python process writes its own to a file on SIGUSR2.

Neither a debugger nor the permission to use one is needed: `verl_prism_cpu.pth` calls
`answer_requests` in every interpreter, including those of Ray and vLLM. For other processes the log
shows the state that Linux reports.
"""

import contextlib
import faulthandler
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

STACKS_VARIABLE = "PRISM_STACKS"
SIGNAL = signal.SIGUSR2
ANSWER_SECONDS = 2.0
HEADING = "===== stacks of "
OURS = re.compile(r"/(verl_prism|verl|vllm|transfer_queue)/")
_THREAD = re.compile(r"(?m)^(?:Current thread|Thread) ")
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')

Frame = tuple[str, str, str]  # file, line, function


def answer_requests() -> None:
    """Write the stacks of all threads on SIGUSR2, if the environment names a file for them."""
    if path := os.environ.get(STACKS_VARIABLE):
        faulthandler.register(SIGNAL, file=open(path, "a"), all_threads=True)  # noqa: SIM115


def report_stacks(processes: "Sequence[psutil.Process]", answers: Path, log: Path) -> list[str]:
    """Append the stacks of all processes to the log.

    Returns a line for each process with a role, which says what it is doing.

    answers: the file to which the processes write their stacks.
    """
    from verl_prism.launcher.process_names import role, title

    lines = []
    with open(log, "a", encoding="utf-8") as file:
        for process in processes:
            name = f"{title(process)}, process {process.pid}"
            state = _kernel_state(process.pid)
            stacks = _ask(process.pid, answers)
            file.write(f"\n{HEADING}{name}, {state}\n{stacks}")
            if role(process):
                lines.append(f"{name}: {current_frames(stacks) or state}")
    return lines


def current_frames(stacks: str) -> str:
    """Return the innermost frame of a process's busiest thread, and the code that called it.

    The caller is the innermost frame of verl, vLLM or ours.
    """
    busiest: list[Frame] = []
    for thread in _THREAD.split(stacks):
        frames = _FRAME.findall(thread)
        if (_caller(frames) is not None, len(frames)) > (
            _caller(busiest) is not None,
            len(busiest),
        ):
            busiest = frames
    if not busiest:
        return ""
    innermost = busiest[0]
    caller = _caller(busiest)
    if caller is None or caller == innermost:
        return _short(innermost)
    return f"{_short(innermost)}, called by {_short(caller)}"


def _caller(frames: Sequence[Frame]) -> Frame | None:
    return next((frame for frame in frames if OURS.search(frame[0])), None)


def _short(frame: Frame) -> str:
    file, line, function = frame
    return f"{'/'.join(Path(file).parts[-2:])}:{line} in {function}"


def _ask(pid: int, answers: Path) -> str:
    """Return what a process writes on the signal.

    A process that does not catch the signal is left alone: the signal would kill it.
    """
    answers.touch()
    start = answers.stat().st_size
    deadline = time.monotonic() + ANSWER_SECONDS
    with contextlib.suppress(OSError):
        if not _catches_signal(pid):
            return ""
        os.kill(pid, SIGNAL)
        size = start
        while time.monotonic() < deadline and (size == start or size != answers.stat().st_size):
            size = answers.stat().st_size
            time.sleep(0.05)
    return answers.read_bytes()[start:].decode(errors="replace")


def _catches_signal(pid: int) -> bool:
    caught = re.search(r"(?m)^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    if caught is None:
        return False
    mask = int(caught[1], 16)
    return bool(mask >> (SIGNAL - 1) & 1)


def _kernel_state(pid: int) -> str:
    """Return e.g. "S (sleeping) in futex_wait_queue", without the function if it is unknown."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "ended"
    found = re.search(r"(?m)^State:\s*(.*)", status)
    state = found[1] if found else "?"
    with contextlib.suppress(OSError):
        function = Path(f"/proc/{pid}/wchan").read_text()
        if function not in ("", "0"):
            return f"{state} in {function}"
    return state
