"""One progress line on the terminal for a stage; everything that libraries print goes to the stage's log file."""

import atexit
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from verl_prism.launcher.log import StageLog
from verl_prism.launcher.log_errors import last_errors, plain_lines

POLL_SECONDS = 0.25
PLAIN_LINE_SECONDS = 30.0


class StageConsole:
    """Owns the terminal while a stage runs.

    Inside the `with` block, file descriptors 1 and 2 of this process, and of every child it starts, lead to
    `<output>/log.txt`; only this class still writes to the terminal. A thread follows `<output>/metrics.jsonl` and
    moves the line: `{"step": …, "data": {…}}`, as verl's file logger writes it, and `{"note": …}` or `{"total": …}`,
    by which a child process names its phase and its number of steps.

    On a terminal the line is redrawn in place; elsewhere a short plain line is printed every half minute and at each
    new phase. When the block ends, also by an exception, the terminal is given back. From interpreter exit on, output
    goes to the log again, so that what libraries say while they shut down is kept but not shown.

    headline: metrics shown on the line, each the key of a metric or `label=key`.
    total_steps: may be set later, once it is known (`console.total_steps = n`).
    first_step: the step that a resumed run goes on from; its log is added to the earlier one's.
    redact: what is printed -> what the log shows of it.
    progressed: when (`time.monotonic()`) a step or a phase was last reported.
    """

    def __init__(
        self,
        stage: str,
        output: Path,
        total_steps: int | None,
        headline: Sequence[str] = (),
        first_step: int = 0,
        redact: Callable[[str], str] = str,
    ) -> None:
        self.stage = stage
        self.output = Path(output)
        self.total_steps = total_steps
        self.log_path = self.output / "log.txt"
        self.metrics: dict[str, Any] = {}
        self._headline = [tuple(h.split("=", 1)) if "=" in h else (h, h) for h in headline]
        self._metrics_path = self.output / "metrics.jsonl"
        self._redact = redact
        self._log: StageLog | None = None
        self._log_start = 0
        self._note = "starting"
        self._step = self._first_step = first_step
        self._pace = _Pace()
        self.progressed = time.monotonic()

    def __enter__(self) -> Self:
        self.output.mkdir(parents=True, exist_ok=True)
        for stale in (self._metrics_path, self.output / "summary.json"):
            stale.unlink(missing_ok=True)
        _flush_streams()
        self._saved_fds = (os.dup(1), os.dup(2))
        self._terminal = open(os.dup(1), "w", encoding="utf-8", errors="replace")
        if not self._first_step:
            self.log_path.unlink(missing_ok=True)
        self._log = StageLog(self.log_path, self._redact)
        self._log_start = os.fstat(self._log.file).st_size
        _point_output_to(self._log.pipe)
        self._animated = self._terminal.isatty()
        self._console = Console(
            file=self._terminal, highlight=False, width=None if self._animated else 120
        )
        self._live = Live(
            get_renderable=self._line,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        if self._animated:
            self._live.start()
        self._stop = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="stage-console", daemon=True)
        self._follower.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_line()
        _flush_streams()
        for fd, saved in zip((1, 2), self._saved_fds, strict=True):
            os.dup2(saved, fd)
            os.close(saved)
        self._terminal.close()
        assert self._log is not None
        self._log.close()
        atexit.register(_point_output_to, self._log.file)

    def note(self, text: str) -> None:
        """Name the phase that the stage is in now, e.g. "starting Ray and vLLM"."""
        self._note = text
        self.progressed = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        """Count steps; for stages that write no metrics.jsonl."""
        self._set_step(self._step + steps)

    def print(self, *renderables: RenderableType) -> None:
        """Print to the terminal, above the progress line."""
        self._console.print(*renderables)

    def say(self, text: str) -> None:
        """A line of its own, above the progress line."""
        self._console.print(Text(text), soft_wrap=True)

    def finish(self, figures: Mapping[str, Any], made: Path | None = None) -> None:
        """Print the three-line summary and write `<output>/summary.json`.

        figures: label -> number or text. made: what the stage leaves behind; the output folder unless given.
        """
        made = self.output if made is None else Path(made)
        seconds = self._pace.elapsed()
        self._stop_line()
        shown = " · ".join(f"{label} {_short(value)}" for label, value in figures.items())
        steps = f"{self._step - self._first_step} steps in " if self._step else ""
        self._console.print(Text(f"✓ {self.stage}: {made}", style="bold"), soft_wrap=True)
        self._console.print(Text(f"  {shown or 'no figures'}"), soft_wrap=True)
        self._console.print(
            Text(f"  {steps}{_clock(seconds)} · log in {self.log_path}"), soft_wrap=True
        )
        summary = {
            "stage": self.stage,
            "made": str(made),
            "figures": dict(figures),
            "steps": self._step,
            "seconds": round(seconds, 1),
            "log": str(self.log_path),
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False, default=float)
        (self.output / "summary.json").write_text(text + "\n")

    @property
    def step(self) -> int:
        """The last step that was reported."""
        return self._step

    def log_lines(self) -> list[str]:
        """Of this run; an earlier one that it goes on from has left some too."""
        _flush_streams()
        if self._log is not None:
            self._log.catch_up()
        return plain_lines(self.log_path.read_bytes()[self._log_start :].decode(errors="replace"))

    def last_errors(self, count: int = 8) -> list[str]:
        """The last lines of this run's log that name an error or, where none does, its last lines."""
        return last_errors(self.log_lines(), count)

    def _stop_line(self) -> None:
        self._stop.set()
        self._follower.join()
        self._live.stop()

    def _follow(self) -> None:
        lines = _AppendedLines(self._metrics_path)
        last_phase, last_time = None, 0.0
        while not self._stop.wait(POLL_SECONDS):
            for line in lines.read():
                self._take(json.loads(line))
            phase, now = (
                re.sub(r"\d+", "", self._note),
                time.monotonic(),
            )  # a note that only counts is no new phase
            if not self._animated and (phase != last_phase or now - last_time > PLAIN_LINE_SECONDS):
                self._console.print(Text(self._plain_line()), soft_wrap=True)
                last_phase, last_time = phase, now
        for line in lines.read():
            self._take(json.loads(line))

    def _take(self, record: dict[str, Any]) -> None:
        if "step" in record:
            self.metrics.update(record["data"])
            self._set_step(max(self._step, int(record["step"])))
        if "total" in record:
            self.total_steps = int(record["total"])
        if "note" in record:
            self.note(record["note"])

    def _set_step(self, step: int) -> None:
        self.progressed = time.monotonic()
        if self._step == self._first_step and step > self._first_step:
            self._note = ""
        if step > self._step:
            self._step = step
            self._pace.stepped(step)

    def _parts(self) -> list[str]:
        of = f"/{self.total_steps}" if self.total_steps else ""
        shown = [
            f"{label} {_short(self.metrics[key])}"
            for label, key in self._headline
            if key in self.metrics
        ]
        left = self._pace.left(self.total_steps)
        times = _clock(self._pace.elapsed()) + ("" if left is None else f", {_clock(left)} left")
        return [f"{self._step}{of}" if self._step or of else "", self._note, *shown, times]

    def _plain_line(self) -> str:
        return "  ".join([self.stage, *filter(None, self._parts())])

    def _line(self) -> RenderableType:
        row: list[RenderableType] = [Text(self.stage, style="bold cyan")]
        if self.total_steps:
            row.append(
                ProgressBar(
                    total=self.total_steps, completed=min(self._step, self.total_steps), width=20
                )
            )
        row += [Text(part) for part in self._parts() if part]
        grid = Table.grid(padding=(0, 2, 0, 0))
        for _ in row:
            grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row(*row)
        return grid


class _Pace:
    """Time left from the mean seconds per step since the first one, so that start-up does not count as a step."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def elapsed(self) -> float:
        return time.monotonic() - self._start

    def stepped(self, step: int) -> None:
        self._last = (step, time.monotonic())
        self._first = self._first or self._last

    def left(self, total_steps: int | None) -> float | None:
        """Seconds; None while unknown."""
        if (
            not total_steps
            or self._first is None
            or self._last is None
            or self._last[0] == self._first[0]
        ):
            return None
        seconds_per_step = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return max(
            0.0,
            seconds_per_step * (total_steps - self._last[0]) - (time.monotonic() - self._last[1]),
        )


class _AppendedLines:
    """Reads the lines appended to a file since the last call; a line still being written waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def read(self) -> list[str]:
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._position)
            *complete, partial = file.read().split(b"\n")
            self._position = file.tell() - len(partial)
        return [line.decode() for line in complete if line.strip()]


def _point_output_to(fd: int) -> None:
    _flush_streams()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # into a file Python would hold lines back


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
