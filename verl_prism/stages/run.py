"""python -m verl_prism.stages.run <config.yaml>: one stage, in this process. Started by `launch.py`."""

import json
import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_prism.config import Prism, parse_prism
from verl_prism.errors import EndedEarly, UserError
from verl_prism.redaction import run_redactor

OUTCOME = "outcome.json"


def main(config_file: Path) -> int:
    """Runs the stage and leaves its figures for the summary, the user's mistake, or the step that it saved when asked
    to end, in `<output>/outcome.json`."""
    config = OmegaConf.load(config_file)
    assert isinstance(config, DictConfig)
    prism = parse_prism(config.prism)
    outcome: dict[str, object]
    try:
        outcome = {"figures": run_stage(config, prism)}
    except UserError as error:
        outcome = {"mistake": run_redactor(config, os.environ)(str(error))}
    except EndedEarly as end:
        outcome = {"saved": end.step}
    if os.environ.get("RANK", "0") == "0":
        (prism.output / OUTCOME).write_text(json.dumps(outcome, indent=2))
    return 2 if "mistake" in outcome else 0


def run_stage(config: DictConfig, prism: Prism) -> dict[str, float | str]:
    """Each stage's modules are imported when it runs: they bring torch, verl, Ray or vLLM."""
    match prism.stage:
        case "sft":
            from verl_prism.stages.sft import run_sft

            return run_sft(config, prism)
        case "warmup":
            from verl_prism.stages.warmup import run_warmup

            return run_warmup(prism)
        case "align" | "rlvr":
            from verl_prism.stages.rl import run_rl

            return run_rl(config, prism)
        case "eval":
            from verl_prism.stages.evaluation import run_eval

            return run_eval(prism)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
