"""The parent of a stage: owns the terminal, starts the stage in a child process and tells how it ended."""

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_prism.config import Prism, Stage
from verl_prism.report.console import StageConsole
from verl_prism.stages.process import ProcessTree

HEADLINE: dict[Stage, tuple[str, ...]] = {
    "sft": ("loss=train/loss",),
    "warmup": (),
    "align": ("format=alignment/valid_share", "length=response_length/mean"),
    "rlvr": ("reward=critic/score/mean", "length=response_length/mean"),
    "eval": (),
}

STARTING: dict[Stage, str] = {
    "sft": "loading the model and the demonstrations",
    "warmup": "loading the policy",
    "align": "starting Ray, the policy, vLLM and the discriminator",
    "rlvr": "starting Ray, the policy and vLLM",
    "eval": "loading the policy",
}


def launch(config: DictConfig, prism: Prism) -> int:
    """Returns the exit code: 0; 1 where the stage failed; 130 where it was stopped by Ctrl-C or SIGTERM."""
    prism.output.mkdir(parents=True, exist_ok=True)
    for stale in ("policy", "discriminator"):
        shutil.rmtree(prism.output / stale, ignore_errors=True)
    (prism.output / "figures.json").unlink(missing_ok=True)
    OmegaConf.save(config, prism.output / "config.yaml")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    scratch = Path(tempfile.mkdtemp(prefix="prism-", dir="/tmp"))  # short: a socket's path has 107 characters at most
    steps = None if prism.stage == "eval" else prism.steps
    console = StageConsole(prism.stage, prism.output, steps, HEADLINE[prism.stage])
    try:
        with console, ProcessTree(command(prism), environment(prism, scratch)) as tree:
            console.note(STARTING[prism.stage])
            status = tree.wait()
            if status == 0:
                figures = json.loads((prism.output / "figures.json").read_text())
                console.finish(figures, made=made(prism))
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; log in {console.log_path}\n")
        return 130
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if status:
        errors = "\n".join(f"  {line}" for line in console.last_errors())
        sys.stderr.write(f"stage {prism.stage} failed; log in {console.log_path}, its last errors:\n{errors}\n")
    return 1 if status else 0


def command(prism: Prism) -> list[str]:
    run = ["-m", "verl_prism.stages.run", str(prism.output / "config.yaml")]
    if prism.stage == "sft" and prism.hardware.devices_per_node > 1:
        ranks = f"--nproc-per-node={prism.hardware.devices_per_node}"
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", ranks, *run]
    return [sys.executable, *run]


def environment(prism: Prism, scratch: Path) -> dict[str, str]:
    """Variables that must be there before Python starts, or that Ray's workers inherit."""
    variables = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "RAY_TMPDIR": str(scratch),
        "VLLM_RPC_BASE_PATH": str(scratch),
        "VERL_FILE_LOGGER_PATH": str(prism.output / "metrics.jsonl"),
    }
    if prism.hardware.device == "cpu":
        from verl_prism.cpu.environment import cpu_environment

        variables |= cpu_environment()
    return variables


def made(prism: Prism) -> Path:
    """What a stage leaves for the next one."""
    match prism.stage:
        case "warmup":
            return prism.output / "discriminator"
        case "eval":
            return prism.output
    return prism.output / "policy"
