"""What one step of the check finds, written to a file after each addition."""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from verl_prism.files import write_atomically

Status = Literal["pass", "fail", "skip", "running"]
ERROR_LINES = 15  # of a traceback, the last ones


class Skip(Exception):
    """A step cannot run here. The message is the reason."""


@dataclass(frozen=True)
class Options:
    """How a step runs.

    device: `cuda` or `cpu`.
    quick: tiny sizes.
    work: folder for the files of the steps. Later steps read those of earlier ones.
    seconds: time limit of the step.
    """

    device: str
    quick: bool
    work: Path
    seconds: float


@dataclass
class Record:
    """Measured values, and checks that passed or failed. It is complete on disk at any time."""

    file: Path
    status: Status = "running"
    reason: str = ""
    error: list[str] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, **values: Any) -> None:
        """Add measured values, of types that JSON knows."""
        self.values |= values
        self.write()

    def check(self, name: str, value: float, limit: float) -> None:
        """Check that a value is at most its limit. NaN fails."""
        self.checks.append({"name": name, "value": value, "limit": limit, "pass": value <= limit})
        self.write()

    def require(self, name: str, value: Any, expected: Any) -> None:
        """Check that a value is the expected one."""
        passed = value == expected
        check = {"name": name, "value": value, "expected": expected, "pass": passed}
        self.checks.append(check)
        self.write()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Record an exception as a failed check, so that the next part of the step still runs."""
        try:
            yield
        except Exception as failure:
            self.checks.append({"name": name, "pass": False, "error": error_lines(failure)})
            self.write()

    def finish(self, failure: BaseException | None = None) -> None:
        """Set the status: `skip` after Skip, `fail` after another exception or a failed check."""
        if isinstance(failure, Skip):
            self.status, self.reason = "skip", str(failure)
        elif failure is not None:
            self.status, self.error = "fail", error_lines(failure)
        else:
            failed = [check["name"] for check in self.checks if not check["pass"]]
            self.status = "fail" if failed else "pass"
            self.reason = f"failed: {', '.join(failed)}" if failed else ""
        self.write()

    def write(self) -> None:
        """Replace the file."""
        content = {
            "status": self.status,
            "reason": self.reason,
            "error": self.error,
            "checks": self.checks,
            "values": self.values,
        }
        write_atomically(self.file, json.dumps(content, indent=1, default=str))


def error_lines(failure: BaseException) -> list[str]:
    """Return the last lines of an exception's traceback."""
    return last_lines("".join(traceback.format_exception(failure)))


def last_lines(text: str, count: int = ERROR_LINES) -> list[str]:
    """Return the last lines that are not blank."""
    return [line for line in text.splitlines() if line.strip()][-count:]
