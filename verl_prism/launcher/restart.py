"""Starting a failed stage again, from its newest complete checkpoint."""

import json
import sys
from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf

from verl_prism.config import Prism
from verl_prism.report.metrics import METRICS

FAILED = 1
FRUITLESS = 2  # restarts in a row without a new step, after which there is no use in another


def with_restarts(
    launch: Callable[[DictConfig, Prism], int], config: DictConfig, prism: Prism
) -> int:
    """The exit code of the last start. A mistake of the user, a stop and a request to end are no failures."""
    furthest, fruitless = 0, 0
    for restart in range(prism.max_restarts + 1):
        status = launch(config, prism)
        if status != FAILED or restart == prism.max_restarts:
            return status
        step = last_step(prism)
        fruitless = fruitless + 1 if restart and step <= furthest else 0
        furthest = max(furthest, step)
        if fruitless == FRUITLESS:
            sys.stderr.write(
                f"not started again: {FRUITLESS} restarts in a row have made no new step\n"
            )
            return status
        sys.stderr.write(
            f"starting it again after step {step}: restart {restart + 1} of prism.max_restarts="
        )
        sys.stderr.write(f"{prism.max_restarts}\n")
        OmegaConf.update(config, "prism.resume", True)
        prism = prism.model_copy(update={"resume": True})
    raise AssertionError


def last_step(prism: Prism) -> int:
    """The last one that was reported; 0 before the first."""
    file = prism.output / METRICS
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
    return max((json.loads(line).get("step", 0) for line in lines), default=0)
