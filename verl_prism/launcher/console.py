"""A progress line on the terminal for a stage. What libraries print goes to the stage's log."""

import atexit
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from verl_prism.launcher.log import StageLog
from verl_prism.launcher.log_errors import plain_lines
from verl_prism.run_folder import RunFolder

POLL_SECONDS = 0.25
PLAIN_LINE_SECONDS = 30.0


class StageConsole:
    """Owns the terminal while a stage runs.

    In the `with` block, file descriptors 1 and 2 of this process and of all its children lead to
    the stage's log. Only this class writes to the terminal. A thread follows the metrics file and
    updates the progress line. It reads steps, in the format of verl's file logger, and lines that
    name the phase or the number of steps (`verl_prism.report.metrics.MetricsLog`). A line that it
    cannot read, as a shared disk may show one for a moment, is skipped and named in the log.

    On a terminal the line is redrawn in place. Otherwise a plain line is printed every half minute
    and at each new phase. At the end of the block the terminal is restored. When the interpreter
    exits, output goes to the log again, for what libraries print while they shut down.

    total_steps: can be set later, when it is known.
    shown: label -> key of each metric on the progress line.
    first_step: step that the run resumes from; the log of the earlier run is then continued.
    redact: removes secrets from what is written to the log.
    unit: what the steps are, for the summary.
    progressed: time (`time.monotonic()`) of the last reported step or phase.
    """

    def __init__(
        self,
        stage: str,
        run: RunFolder,
        total_steps: int | None,
        shown: Mapping[str, str] | None = None,
        first_step: int = 0,
        redact: Callable[[str], str] = str,
        unit: str = "steps",
    ) -> None:
        self.stage = stage
        self.run = run
        self.total_steps = total_steps
        self.log_path = run.log
        self.metrics: dict[str, Any] = {}
        self.step = first_step  # the last one reported
        self._shown = shown or {}
        self._first_step = first_step
        self._redact = redact
        self._unit = unit
        self._log: StageLog | None = None
        self._log_start = 0
        self._note = "starting"
        self._skipped = 0  # lines of the metrics file
        self._pace = _Pace()
        self.progressed = time.monotonic()

    def __enter__(self) -> Self:
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.run.metrics.unlink(missing_ok=True)
        self.run.summary.unlink(missing_ok=True)
        _flush_streams()
        self._saved_fds = (os.dup(1), os.dup(2))
        self._terminal = open(os.dup(1), "w", encoding="utf-8", errors="replace")
        if not self._first_step:
            self.log_path.unlink(missing_ok=True)
        self._log = StageLog(self.log_path, self._redact)
        self._log_start = os.fstat(self._log.file).st_size
        _point_output_to(self._log.pipe)
        self._animated = self._terminal.isatty()
        width = None if self._animated else 120
        self._console = Console(file=self._terminal, highlight=False, width=width)
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
        if self._skipped:
            lines = f"unreadable lines of {self.run.metrics}"
            self._try_to_say(f"{lines}: {self._skipped} skipped; see the log")
        self._terminal.close()
        assert self._log is not None
        self._log.close()
        atexit.register(_point_output_to, self._log.file)

    def note(self, text: str) -> None:
        """Name the current phase of the stage, e.g. "starting Ray and vLLM"."""
        self._note = text
        self.progressed = time.monotonic()

    def print(self, *renderables: RenderableType) -> None:
        """Print to the terminal, above the progress line."""
        self._console.print(*renderables)

    def say(self, text: str) -> None:
        """Print a line of text above the progress line."""
        self._console.print(Text(text), soft_wrap=True)

    def _try_to_say(self, text: str) -> None:
        with suppress(OSError, SystemExit):  # rich raises it if nobody reads the output
            self.say(text)

    def finish(self, metrics: Mapping[str, Any], result: Path) -> None:
        """Print the three-line summary and write it to `summary.json`.

        metrics: label -> number or text. result: what the stage leaves for the next one.
        """
        seconds = self._pace.elapsed()
        self._stop_line()
        shown = " · ".join(f"{label} {_short(value)}" for label, value in metrics.items())
        steps = f"{self.step - self._first_step} {self._unit} in " if self.step else ""
        self._console.print(Text(f"✓ {self.stage}: {result}", style="bold"), soft_wrap=True)
        self.say(f"  {shown or 'no metrics'}")
        self.say(f"  {steps}{clock(seconds)} · log in {self.log_path}")
        summary = {
            "stage": self.stage,
            "made": str(result),
            "metrics": dict(metrics),
            "steps": self.step,
            "seconds": round(seconds, 1),
            "log": str(self.log_path),
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False, default=float)
        self.run.summary.write_text(text + "\n")

    def log_problem(self) -> str:
        """Return what the log lacks and why, e.g. because the disk is full, or ""."""
        return self._log.problem if self._log is not None else ""

    def log_lines(self) -> list[str]:
        """Return the log of this run, without what an earlier run wrote before a resume."""
        _flush_streams()
        if self._log is not None:
            self._log.catch_up()
        log = self.log_path.read_bytes()[self._log_start :]
        return plain_lines(log.decode(errors="replace"))

    def _stop_line(self) -> None:
        self._stop.set()
        self._follower.join()
        self._live.stop()

    def _follow(self) -> None:
        lines = _AppendedLines(self.run.metrics)
        last_phase = None
        last_time = 0.0
        while not self._stop.wait(POLL_SECONDS):
            with suppress(OSError):  # of a shared disk; the next poll reads on
                self._take_lines(lines.read())
            if self._animated:
                continue
            phase = re.sub(r"\d+", "", self._note)  # a note that only counts is not a new phase
            now = time.monotonic()
            if phase != last_phase or now - last_time > PLAIN_LINE_SECONDS:
                self._try_to_say(self._plain_line())
                last_phase = phase
                last_time = now
        with suppress(OSError):
            self._take_lines(lines.read())

    def _take_lines(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                self._skipped += 1
                text = f"skipped an unreadable line of {self.run.metrics}: {line[:100]!r}\n"
                os.write(1, text.encode())

    def _take(self, record: dict[str, Any]) -> None:
        if "step" in record:
            self.metrics.update(record["data"])
            self._set_step(int(record["step"]))
        if "total" in record:
            self.total_steps = int(record["total"])
        if "note" in record:
            self.note(record["note"])

    def _set_step(self, step: int) -> None:
        self.progressed = time.monotonic()
        if step > self.step:
            if self.step == self._first_step:
                self._note = ""
            self.step = step
            self._pace.stepped(step)

    def _parts(self) -> list[str]:
        """Return the parts of the progress line: step, phase, metrics and times."""
        parts = []
        if self.total_steps:
            parts.append(f"{self.step}/{self.total_steps}")
        elif self.step:
            parts.append(str(self.step))
        if self._note:
            parts.append(self._note)
        for label, key in self._shown.items():
            if key in self.metrics:
                parts.append(f"{label} {_short(self.metrics[key])}")
        times = clock(self._pace.elapsed())
        left = self._pace.left(self.total_steps)
        if left is not None:
            times += f", {clock(left)} left"
        return [*parts, times]

    def _plain_line(self) -> str:
        return "  ".join([self.stage, *self._parts()])

    def _line(self) -> RenderableType:
        row: list[RenderableType] = [Text(self.stage, style="bold cyan")]
        if self.total_steps:
            done = min(self.step, self.total_steps)
            row.append(ProgressBar(total=self.total_steps, completed=done, width=20))
        row += [Text(part) for part in self._parts()]
        grid = Table.grid(padding=(0, 2, 0, 0))
        for _ in row:
            grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row(*row)
        return grid


class _Pace:
    """Estimates the time left from the mean time per step.

    The first step is left out, because it includes the start-up.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._first: tuple[int, float] | None = None  # step, time
        self._last: tuple[int, float] | None = None

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._start

    def stepped(self, step: int) -> None:
        """Record that a step has ended."""
        self._last = (step, time.monotonic())
        self._first = self._first or self._last

    def left(self, total_steps: int | None) -> float | None:
        """Return the seconds left; None while unknown."""
        if not total_steps or self._first is None or self._last is None:
            return None
        first_step, first_time = self._first
        last_step, last_time = self._last
        if last_step == first_step:
            return None
        seconds_per_step = (last_time - first_time) / (last_step - first_step)
        since_last = time.monotonic() - last_time
        return max(0.0, seconds_per_step * (total_steps - last_step) - since_last)


class _AppendedLines:
    """Reads the lines appended to a file since the last call, but no incomplete last line.

    verl's logger empties the file when training starts, after lines that name earlier phases. The
    file is therefore read from its start if its first line has changed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._first_line = b""
        self._position = 0

    def read(self) -> list[bytes]:
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            if file.read(len(self._first_line)) != self._first_line:
                self._first_line = b""
                self._position = 0
            file.seek(self._position)
            *complete, partial = file.read().split(b"\n")
            self._position = file.tell() - len(partial)
        if complete and not self._first_line:
            self._first_line = complete[0] + b"\n"
        return [line for line in complete if line.strip()]


def _point_output_to(fd: int) -> None:
    _flush_streams()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # Python buffers blocks when not on a terminal


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def clock(seconds: float) -> str:
    """Return minutes and seconds, hours too from one hour on, and days from two days on."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
