"""Restart of a failed stage from its newest complete checkpoint."""

import json
import sys
from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf

from verl_prism.config import Prism
from verl_prism.launcher.launch import EXIT_FAILED
from verl_prism.run_folder import RunFolder

MAX_FRUITLESS = 2  # restarts in a row without a new step, after which another one is useless


def with_restarts(
    launch: Callable[[DictConfig, Prism], int], config: DictConfig, prism: Prism
) -> int:
    """Launch a stage, again if it fails, and return the exit code of the last launch.

    A user's error, a stop and an early end on request are not failures.
    """
    run = RunFolder(prism.output)
    furthest = 0
    fruitless = 0
    for restart in range(1, prism.max_restarts + 1):
        status = launch(config, prism)
        if status != EXIT_FAILED:
            return status
        step = last_step(run)
        if restart > 1:
            fruitless = fruitless + 1 if step <= furthest else 0
        furthest = max(furthest, step)
        if fruitless == MAX_FRUITLESS:
            sys.stderr.write(f"giving up: {MAX_FRUITLESS} restarts in a row made no new step\n")
            return status
        sys.stderr.write(
            f"restarting after step {step}: "
            f"restart {restart} of prism.max_restarts={prism.max_restarts}\n"
        )
        OmegaConf.update(config, "prism.resume", True)
        prism = prism.model_copy(update={"resume": True})
    return launch(config, prism)


def last_step(run: RunFolder) -> int:
    """Return the last step that was reported; 0 before the first one."""
    if not run.metrics.exists():
        return 0
    lines = run.metrics.read_text(encoding="utf-8").split("\n")[:-1]
    return max([json.loads(line).get("step", 0) for line in lines], default=0)
