"""The process of one step: python -m verl_prism.gpu_check.process TASK.

TASK is the JSON of a `Task`.
"""

import faulthandler
import importlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_prism.gpu_check.record import Options, Record

STACKS_BEFORE_LIMIT = 2.0  # seconds before the limit at which a step that hangs shows its stacks


@dataclass(frozen=True)
class Task:
    """A step for a process.

    function: `module:function`.
    result: file of the step's record.
    The other fields are those of Options.
    """

    function: str
    arguments: tuple[Any, ...]
    result: str
    device: str
    quick: bool
    work: str
    seconds: float

    def command(self) -> list[str]:
        """Return the command that runs the step."""
        return [sys.executable, "-m", "verl_prism.gpu_check.process", json.dumps(asdict(self))]


def main(task: Task) -> int:
    """Run a step, and return 0 unless it failed."""
    options = Options(task.device, task.quick, Path(task.work), task.seconds)
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(task.seconds - STACKS_BEFORE_LIMIT, 1.0))
    record = Record(Path(task.result))
    record.write()
    try:
        module, function = task.function.split(":")
        getattr(importlib.import_module(module), function)(options, record, *task.arguments)
    except Exception as failure:
        record.finish(failure)
    else:
        record.finish()
    sys.stdout.write("\n".join([*record.error, record.reason, ""]))
    return 1 if record.status == "fail" else 0


if __name__ == "__main__":
    sys.exit(main(Task(**json.loads(sys.argv[1]))))
