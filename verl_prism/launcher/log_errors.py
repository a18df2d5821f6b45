"""What a log says of a failure: the lines that a person is shown, out of thousands."""

import re
from collections.abc import Sequence

ERROR_LINE = re.compile(
    r"\b\w*(Error|Exception|Interrupt)\b|\b(ERROR|CRITICAL|FATAL)\b|Killed|out of memory|Signal \d+ \((?!SIGTERM)"
)
# What processes say because another one has failed.
CONSEQUENCE = re.compile(
    r"RayTaskError|ActorDiedError|ActorUnavailableError|WorkerCrashedError|EngineDeadError|ChildFailedError"
    r"|CancelledError|BrokenPipeError|Connection(Reset|Refused|Aborted)?Error|Connection closed by peer"
    r"|ServerDisconnectedError|rollouts of \d+ prompts failed|Error in _run_prompt|\*\*\* SIGTERM received"
    r"|an unexpected system error|SYSTEM_ERROR|KeyboardInterrupt|Failed to connect to GCS"
)
TRACEBACK = re.compile(
    r"Traceback \(most recent call last\)|\[\S+:\d+\] {2,}"
)  # vLLM logs a traceback line by line
ANSI_CODE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
RAY_PREFIX = re.compile(r"^\s*(\(\w*( pid=\d+)?(, ip=[\d.]+)?\)\s*)+")
MISTAKE = re.compile(r"verl_prism\.errors\.UserError: (.+)")


def plain_lines(log: str) -> list[str]:
    """Without colours and empty lines."""
    lines = (ANSI_CODE.sub("", line).rstrip() for line in log.splitlines())
    return [line for line in lines if line]


def causes(lines: Sequence[str]) -> list[str]:
    """Lines that name an error, each once; not those that only follow from the failure of another process."""
    errors = list(
        {RAY_PREFIX.sub("", line): line for line in lines if ERROR_LINE.search(line)}.values()
    )
    return [line for line in errors if not CONSEQUENCE.search(line) and not TRACEBACK.search(line)]


def last_errors(lines: Sequence[str], count: int) -> list[str]:
    """The last lines that name an error, causes if there are any; where none does, the last lines."""
    errors = list(dict.fromkeys(line for line in lines if ERROR_LINE.search(line)))
    return list(causes(lines) or errors or lines)[-count:]


def user_mistake(lines: Sequence[str]) -> str | None:
    """The message of a UserError that was raised in whichever process."""
    return next((found[1] for line in lines if (found := MISTAKE.search(line))), None)
