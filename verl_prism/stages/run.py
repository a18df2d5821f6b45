"""python -m verl_prism.stages.run <config.yaml>: run a stage in this process, for the launcher."""

import json
import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_prism.config import Prism, parse_prism
from verl_prism.errors import EndedEarly, UserError
from verl_prism.launcher.logger_files import prepare_loggers
from verl_prism.redaction import run_redactor
from verl_prism.run_folder import RunFolder


def main(config_file: Path) -> int:
    """Run the stage and save its outcome for the launcher: `metrics`, `error` or `saved_step`.

    Returns 2 for a user's error, otherwise 0. Any other exception propagates.
    """
    config = OmegaConf.load(config_file)
    assert isinstance(config, DictConfig)
    prism = parse_prism(config.prism)
    outcome: dict[str, object]
    try:
        prepare_loggers(prism)
        outcome = {"metrics": run_stage(config, prism)}
    except UserError as error:
        redact = run_redactor(config, os.environ)
        outcome = {"error": redact(str(error))}
    except EndedEarly as end:
        outcome = {"saved_step": end.step}
    RunFolder(prism.output).outcome.write_text(json.dumps(outcome, indent=2))
    return 2 if "error" in outcome else 0


def run_stage(config: DictConfig, prism: Prism) -> dict[str, float | str]:
    """Run the stage and return the metrics for its summary.

    Only the stage's own module is imported: torch, verl, Ray and vLLM take long to import.
    """
    match prism.stage:
        case "sft" | "dpo":
            from verl_prism.stages.sft import run_sft

            return run_sft(config, prism)
        case "warmup":
            from verl_prism.stages.warmup import run_warmup

            return run_warmup(prism)
        case "align" | "rlvr":
            from verl_prism.stages.rl import run_rl

            return run_rl(config, prism)
        case "sample":
            from verl_prism.stages.sample import run_sample

            return run_sample(prism)
        case "eval":
            from verl_prism.stages.evaluation import run_eval

            return run_eval(prism)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
