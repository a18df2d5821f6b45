"""The few lines of a log that explain a failure."""

import re
from collections.abc import Sequence

ERROR_LINE = re.compile(
    r"\b\w*(Error|Exception|Interrupt)\b|\b(ERROR|CRITICAL|FATAL)\b|Killed|out of memory"
    r"|Signal \d+ \((?!SIGTERM)"
)
# What processes print because another one has failed.
CONSEQUENCE = re.compile(
    r"RayTaskError|ActorDiedError|ActorUnavailableError|WorkerCrashedError|EngineDeadError"
    r"|ChildFailedError|CancelledError|BrokenPipeError|Connection(Reset|Refused|Aborted)?Error"
    r"|Connection closed by peer|ServerDisconnectedError|rollouts of \d+ prompts failed"
    r"|Error in _run_prompt|\*\*\* SIGTERM received|an unexpected system error|SYSTEM_ERROR"
    r"|KeyboardInterrupt|Failed to connect to GCS"
)
# vLLM logs a traceback line by line.
TRACEBACK = re.compile(r"Traceback \(most recent call last\)|\[\S+:\d+\] {2,}")
ANSI_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
RAY_PREFIX = re.compile(r"^\s*(\(\w*( pid=\d+)?(, ip=[\d.]+)?\)\s*)+")
MISTAKE = re.compile(r"verl_prism\.errors\.UserError: (.+)")


def plain_lines(log: str) -> list[str]:
    """Return the lines of a log, without colors and empty lines."""
    lines = [ANSI_CODE.sub("", line).rstrip() for line in log.splitlines()]
    return [line for line in lines if line]


def causes(lines: Sequence[str]) -> list[str]:
    """Return the lines that name an error, each once, without consequences of other errors."""
    errors: dict[str, str] = {}
    for line in lines:
        if ERROR_LINE.search(line):
            errors[RAY_PREFIX.sub("", line)] = line
    return [
        line
        for line in errors.values()
        if not CONSEQUENCE.search(line) and not TRACEBACK.search(line)
    ]


def last_errors(lines: Sequence[str], count: int) -> list[str]:
    """Return the last causes or, if there are none, the last errors or the last lines."""
    errors = list(dict.fromkeys(line for line in lines if ERROR_LINE.search(line)))
    shown = causes(lines) or errors or list(lines)
    return shown[-count:]


def user_mistake(lines: Sequence[str]) -> str | None:
    """Return the message of the first UserError that a process has raised."""
    for line in lines:
        if found := MISTAKE.search(line):
            return found[1]
    return None
