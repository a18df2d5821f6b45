"""What the parent of a stage looks at while it waits: that no process dies while the run goes on, and that it gets on.

verl and Ray end a run by themselves when most of their processes die, and wait for ever for some others.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from verl_prism.config import ON_RAY, Prism
from verl_prism.launcher.console import StageConsole
from verl_prism.launcher.oom import kernel_kills
from verl_prism.launcher.process_names import in_words, process_class
from verl_prism.launcher.process_tree import ProcessTree
from verl_prism.launcher.stacks import report_stacks

POLL_SECONDS = 0.5
GRACE_SECONDS = (
    20.0  # for a run to end by itself once a process of it has died: what it says then says more
)
TAKE_OTHERS_ALONG = (
    "raylet",
    "gcs_server",
    "PrismTaskRunner",
)  # Ray ends an actor's own actors with it


@dataclass(frozen=True)
class Death:
    """A process that was there at one look and gone at the next."""

    name: str  # its class
    pid: int
    memory: int  # bytes, when it was last seen
    step: int

    def __str__(self) -> str:
        held = f"{self.memory >> 20} MiB"
        return f"the {in_words(self.name)}, process {self.pid}, died in step {self.step}; it held {held}"


class Watch:
    """Waits for the end of a stage, and gives a stage up that has lost a process or makes no progress.

    deaths: processes that were missing first, while the stage still ran.
    complaint: why the stage was given up.
    """

    def __init__(
        self, tree: ProcessTree, console: StageConsole, prism: Prism, stacks: Path
    ) -> None:
        self._tree, self._console, self._stacks = tree, console, stacks
        self._stall_seconds = prism.stall_seconds
        # Elsewhere torchrun looks after its ranks, and vLLM's engine comes and goes.
        self._on_ray = prism.stage in ON_RAY
        self._seen: dict[psutil.Process, tuple[str, int]] = {}
        self._first_step = console.step
        self._died_at = 0.0
        self._kills_before = kernel_kills()
        self.deaths: list[Death] = []
        self.complaint = ""

    def wait(self) -> int:
        """The stage's exit status; 1 where it was given up."""
        while (status := self._tree.wait(POLL_SECONDS)) is None:
            self._look()
            if self.deaths and time.monotonic() > self._died_at + GRACE_SECONDS:
                self.complaint = (
                    f"it did not end by itself within {GRACE_SECONDS:.0f} s and was ended"
                )
                return 1
            if self._stalled():
                self.complaint = self._stall()
                return 1
        return status

    def kernel_kills(self) -> int:
        """How many processes the kernel has killed for want of memory since the stage was started."""
        return kernel_kills() - self._kills_before

    def _look(self) -> None:
        """Deaths count between the first step and the last: before and after, processes come and go."""
        if not self._on_ray or self.deaths or self._console.step == self._console.total_steps:
            return
        alive = {
            process: (name, _memory(process))
            for process in self._tree.alive()
            if (name := process_class(process))
        }
        gone = sorted(
            (process.pid, *self._seen[process]) for process in self._seen.keys() - alive.keys()
        )
        if gone and self._console.step > self._first_step:
            first = [each for each in gone if each[1] in TAKE_OTHERS_ALONG] or gone
            self.deaths = [
                Death(name, pid, memory, self._console.step + 1) for pid, name, memory in first
            ]
            self._died_at = time.monotonic()
        self._seen = alive

    def _stalled(self) -> bool:
        limit = self._stall_seconds
        return limit is not None and time.monotonic() > self._console.progressed + limit

    def _stall(self) -> str:
        where = report_stacks(self._tree.alive(), self._stacks, self._console.log_path)
        listed = "\n".join(f"  {line}" for line in where)
        return (
            f"no progress for prism.stall_seconds={self._stall_seconds:g}. Where its processes stand, in full at the "
            f"end of {self._console.log_path}:\n{listed}"
        )


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
