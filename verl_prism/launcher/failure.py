"""The message for a failed stage: which process died, what ran out of memory, the last errors."""

import signal
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from verl_prism.errors import UserError
from verl_prism.launcher.console import StageConsole
from verl_prism.launcher.log_errors import causes, last_errors, user_mistake
from verl_prism.launcher.oom import memory_advice
from verl_prism.launcher.stacks import HEADING
from verl_prism.launcher.watch import Watch

LINES = 8


def failure_text(
    stage: str, status: int, console: StageConsole, watch: Watch, settings: Mapping[str, Any]
) -> str:
    """Return the message for stderr.

    status: exit status of the stage. settings: full key -> current value, for the advice.

    Raises UserError if any process of the stage found a mistake of the user.
    """
    lines = list(takewhile(lambda line: not line.startswith(HEADING), console.log_lines()))
    if mistake := user_mistake(lines):
        raise UserError(mistake)
    reasons = [str(death) for death in watch.deaths]
    if status < 0:
        name = signal.Signals(-status).name
        reasons.append(f"the stage's own process was killed by {name}")
    if watch.complaint:
        reasons.append(watch.complaint)
    if problem := console.log_problem():
        reasons.append(problem)
    dead = [death.name for death in watch.deaths]
    if advice := memory_advice(lines, dead, watch.kernel_kills(), settings):
        reasons.append(advice)

    if reasons:
        head = f"stage {stage} failed: " + "\n".join(reasons) + "\n"
        errors = causes(lines)[-LINES:]
    else:
        head = f"stage {stage} failed; "
        errors = last_errors(lines, LINES)
    if not errors:
        return f"{head}log in {console.log_path}\n"
    shown = "".join(f"  {line}\n" for line in errors)
    return f"{head}log in {console.log_path}, its last errors:\n{shown}"
