"""Where every process of a run stands: each Python process writes its stacks to a file when a signal asks for them.

No debugger is needed, nor the right to use one: `verl_prism_cpu.pth` calls `answer_requests` in every interpreter,
Ray's and vLLM's included. Of other processes there is what Linux shows of any.
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
HEADING = "===== where it stands: "
OURS = re.compile(r"/(verl_prism|verl|vllm|transfer_queue)/")
_FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')

Frame = tuple[str, str, str]  # file, line, function


def answer_requests() -> None:
    """Where the environment names a file for stacks, SIGUSR2 adds those of all threads of this process to it."""
    if path := os.environ.get(STACKS_VARIABLE):
        faulthandler.register(SIGNAL, file=open(path, "a"), all_threads=True)  # noqa: SIM115


def report_stacks(processes: "Sequence[psutil.Process]", answers: Path, log: Path) -> list[str]:
    """Adds the stacks of all to the log. Returns a line for each process with a role: what it waits for."""
    from verl_prism.launcher.process_names import role, title

    lines = []
    with open(log, "a", encoding="utf-8") as file:
        for process in processes:
            name, state, stacks = (
                title(process),
                _kernel_state(process.pid),
                _ask(process.pid, answers),
            )
            file.write(f"\n{HEADING}{name}, process {process.pid}, {state}\n{stacks}")
            if role(process):
                lines.append(f"{name}, process {process.pid}: {where(stacks) or state}")
    return lines


def where(stacks: str) -> str:
    """Of one process: the innermost frame of its busiest thread, and the innermost one of verl, vLLM or ours."""
    threads = [
        _FRAME.findall(part) for part in re.split(r"(?m)^(?:Current thread|Thread) ", stacks)
    ]
    frames: list[Frame] = max(
        threads, key=lambda thread: (any(OURS.search(file) for file, *_ in thread), len(thread))
    )
    ours = [frame for frame in frames if OURS.search(frame[0])]
    return ", called by ".join(dict.fromkeys(_short(frame) for frame in [*frames[:1], *ours[:1]]))


def _short(frame: Frame) -> str:
    file, line, function = frame
    return f"{'/'.join(Path(file).parts[-2:])}:{line} in {function}"


def _ask(pid: int, answers: Path) -> str:
    """What a process adds to the file; nothing from one that does not listen: the signal would end it."""
    answers.touch()
    before, deadline = answers.stat().st_size, time.monotonic() + ANSWER_SECONDS
    with contextlib.suppress(OSError):
        if not _listens(pid):
            return ""
        os.kill(pid, SIGNAL)
        size = before
        while time.monotonic() < deadline and (size == before or size != answers.stat().st_size):
            size = answers.stat().st_size
            time.sleep(0.05)
    return answers.read_bytes()[before:].decode(errors="replace")


def _listens(pid: int) -> bool:
    caught = re.search(r"(?m)^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (SIGNAL - 1) & 1)


def _kernel_state(pid: int) -> str:
    """Such as "S (sleeping) in futex_wait_queue"; the function where the system tells it."""
    with contextlib.suppress(OSError):
        state = re.search(r"(?m)^State:\s*(.*)", Path(f"/proc/{pid}/status").read_text())
        waits = ""
        with contextlib.suppress(OSError):
            waits = Path(f"/proc/{pid}/wchan").read_text()
        return f"{state[1] if state else '?'}{f' in {waits}' if waits not in ('', '0') else ''}"
    return "ended"
