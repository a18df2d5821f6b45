"""python -m verl_prism.stages.run <config.yaml>: one stage, in this process. Started by `launch.py`."""

import json
import os
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_prism.config import Prism, parse_prism


def main(config_file: str) -> None:
    """Runs the stage and leaves its figures for the summary in `<output>/figures.json`."""
    config = OmegaConf.load(config_file)
    assert isinstance(config, DictConfig)
    prism = parse_prism(config.prism)
    figures = run_stage(config, prism)
    if os.environ.get("RANK", "0") == "0":
        (prism.output / "figures.json").write_text(json.dumps(figures, indent=2))


def run_stage(config: DictConfig, prism: Prism) -> dict[str, float | str]:
    match prism.stage:
        case "sft":
            from verl_prism.stages.sft import run_sft

            return run_sft(config, prism)
        case "warmup":
            from verl_prism.discriminator.warmup import run_warmup

            return run_warmup(prism)
        case "align" | "rlvr":
            from verl_prism.stages.rl import run_rl

            return run_rl(config, prism)
        case "eval":
            from verl_prism.evaluation import run_eval

            return run_eval(prism)


if __name__ == "__main__":
    main(*map(str, map(Path, sys.argv[1:])))
