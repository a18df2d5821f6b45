"""What a person is told of a stage that has failed: who died, who ran out of memory, where it stood, what it said."""

import signal
from itertools import takewhile

from verl_prism.config import Prism
from verl_prism.errors import UserError
from verl_prism.launcher.console import StageConsole
from verl_prism.launcher.log_errors import causes, last_errors, user_mistake
from verl_prism.launcher.oom import memory_advice
from verl_prism.launcher.stacks import HEADING
from verl_prism.launcher.watch import Watch

LINES = 8


def failure_text(prism: Prism, status: int, console: StageConsole, watch: Watch) -> str:
    """For stderr. status: the stage's. Raises UserError where any process of it found a mistake of the user."""
    lines = list(takewhile(lambda line: not line.startswith(HEADING), console.log_lines()))
    if mistake := user_mistake(lines):
        raise UserError(mistake)
    said = [str(death) for death in watch.deaths]
    if status < 0:
        said.append(f"the stage's own process was killed by {signal.Signals(-status).name}")
    advice = memory_advice(
        lines, [death.name for death in watch.deaths], watch.kernel_kills(), prism
    )
    explained = [text for text in (*said, watch.complaint, advice) if text]
    errors = causes(lines)[-LINES:] if explained else last_errors(lines, LINES)
    shown = "".join(f"\n  {line}" for line in errors)
    head = f"stage {prism.stage} failed" + (
        "; " if not explained else ": " + "\n".join(explained) + "\n"
    )
    return f"{head}log in {console.log_path}" + (f", its last errors:{shown}\n" if shown else "\n")
