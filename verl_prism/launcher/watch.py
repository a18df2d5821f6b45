"""The watch over a running stage: it notices dead processes and stalls.

verl and Ray end a run by themselves when most of their processes die, but wait forever for some.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from verl_prism.checkpoints.preemption import end_requested
from verl_prism.checkpoints.store import STEP
from verl_prism.launcher.console import StageConsole
from verl_prism.launcher.oom import kernel_kills
from verl_prism.launcher.process_names import describe, process_class
from verl_prism.launcher.process_tree import ProcessTree
from verl_prism.launcher.stacks import report_stacks

POLL_SECONDS = 0.5
GRACE_SECONDS = 20.0  # for a run that lost a process to end by itself: its own errors say more
ENDS_OTHERS = ("raylet", "gcs_server", "PrismTaskRunner")  # other processes die with these


@dataclass(frozen=True)
class Death:
    """A process that has disappeared.

    name: its class. memory: bytes, when it was last seen. step: the step during which it died.
    """

    name: str
    pid: int
    memory: int
    step: int

    def __str__(self) -> str:
        process = f"{describe(self.name)}, process {self.pid}"
        return f"the {process}, died in step {self.step}; it held {self.memory >> 20} MiB"


class Watch:
    """Waits for a stage to end, and gives it up if it lost a process or makes no progress.

    on_ray: watch the processes of a trainer on Ray. Other stages watch their own ranks and engines,
        which start and end during the run.
    stall_seconds: give the stage up after this time without a step, a new phase or an unfinished
        checkpoint that grows; None disables.
    deaths: processes that disappeared first, while the stage still ran.
    complaint: why the stage was given up.
    """

    def __init__(
        self,
        tree: ProcessTree,
        console: StageConsole,
        stacks: Path,
        *,
        on_ray: bool,
        stall_seconds: float | None,
    ) -> None:
        self._tree = tree
        self._console = console
        self._stacks = stacks
        self._on_ray = on_ray
        self._stall_seconds = stall_seconds
        self._seen: dict[psutil.Process, tuple[str, int]] = {}  # class and memory
        self._first_step = console.step
        self._died_at = 0.0
        self._unfinished_bytes = 0  # of a checkpoint that is being written
        self._kills_before = kernel_kills()
        self.deaths: list[Death] = []
        self.complaint = ""

    def wait(self) -> int:
        """Return the stage's exit status, or 1 if it was given up."""
        while (status := self._tree.wait(POLL_SECONDS)) is None:
            self._look_for_deaths()
            if self.deaths and time.monotonic() > self._died_at + GRACE_SECONDS:
                self.complaint = (
                    f"the run did not end by itself within {GRACE_SECONDS:.0f} s and was stopped"
                )
                return 1
            if self._is_stalled():
                self.complaint = self._describe_stall()
                return 1
        return status

    def kernel_kills(self) -> int:
        """Return how many processes the kernel's OOM killer has killed since the stage started."""
        return kernel_kills() - self._kills_before

    def _look_for_deaths(self) -> None:
        """Compare the processes with those seen before.

        Before the first step and after the last one, processes may start and end.
        """
        if not self._on_ray or self.deaths or self._training_has_ended():
            return
        alive = {}
        for process in self._tree.alive():
            if name := process_class(process):
                alive[process] = (name, _memory(process))
        if self._console.step > self._first_step:
            self._record_deaths(self._seen.keys() - alive.keys())
        self._seen = alive

    def _training_has_ended(self) -> bool:
        """Return whether the last step was reported, or one that was saved for an early end."""
        step = self._console.step
        if step == self._console.total_steps:
            return True
        run = self._console.run
        checkpoint = run.checkpoints / f"{STEP}{step}"
        if not end_requested(run) or not checkpoint.exists():
            return False
        return checkpoint.stat().st_mtime >= run.end_request.stat().st_mtime

    def _record_deaths(self, gone: set[psutil.Process]) -> None:
        if not gone:
            return
        self._died_at = time.monotonic()
        for process in sorted(gone, key=lambda process: process.pid):
            name, memory = self._seen[process]
            self.deaths.append(Death(name, process.pid, memory, self._console.step + 1))
        roots = [death for death in self.deaths if death.name in ENDS_OTHERS]
        self.deaths = roots or self.deaths

    def _is_stalled(self) -> bool:
        limit = self._stall_seconds
        if limit is None or time.monotonic() <= self._console.progressed + limit:
            return False
        if self._checkpoint_has_grown():
            self._console.progressed = time.monotonic()
            return False
        return True

    def _checkpoint_has_grown(self) -> bool:
        """Return whether a checkpoint is being written that had another size at the last call."""
        found = _bytes_in(self._console.run.unfinished_checkpoints)
        has_grown = found not in (0, self._unfinished_bytes)
        self._unfinished_bytes = found
        return has_grown

    def _describe_stall(self) -> str:
        log = self._console.log_path
        processes = report_stacks(self._tree.alive(), self._stacks, log)
        listed = "\n".join(f"  {line}" for line in processes)
        return (
            f"no progress for prism.stall_seconds={self._stall_seconds:g}. The full stacks of all "
            f"processes are at the end of {log}; in short:\n{listed}"
        )


def _bytes_in(folder: Path) -> int:
    """Return the size of all files in a folder, which may appear and disappear meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.path.getsize(os.path.join(parent, name))
    return total


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
