"""The parent of a stage: owns the terminal, starts the stage in a child process and tells how it ended."""

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_prism.config import Prism, Stage
from verl_prism.cpu.environment import cpu_environment
from verl_prism.data.checks import model_folders
from verl_prism.errors import UserError
from verl_prism.report.console import StageConsole
from verl_prism.report.table import results_table
from verl_prism.stages.failure import failure_text
from verl_prism.stages.figures import shown
from verl_prism.stages.process import STOP_SIGNALS, ProcessTree
from verl_prism.stages.resume import check_resumable
from verl_prism.stages.run import OUTCOME
from verl_prism.stages.stacks import STACKS_VARIABLE
from verl_prism.stages.watch import Watch

STARTING: dict[Stage, str] = {
    "sft": "loading the model and the demonstrations",
    "warmup": "loading the policy",
    "align": "starting Ray, the policy, vLLM and the discriminator",
    "rlvr": "starting Ray, the policy and vLLM",
    "eval": "loading the policy",
}


def launch(config: DictConfig, prism: Prism) -> int:
    """Returns the exit code: 0; 1 where the stage failed; 130 where it was stopped by Ctrl-C, SIGTERM or SIGHUP.

    Raises UserError where the stage itself found a mistake in its input.
    """
    if prism.stage == "warmup" and prism.warmup.resume:
        check_resumable(prism)
    clear_output(prism)
    OmegaConf.save(config, prism.output / "config.yaml")
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    scratch = Path(tempfile.mkdtemp(prefix="prism-", dir="/tmp"))  # short: a socket's path has 107 characters at most
    steps = None if prism.stage == "eval" else prism.steps
    headline = [f"{label}={key}" for label, key in shown(prism).items()]
    console = StageConsole(prism.stage, prism.output, steps, headline)
    try:
        with console, ProcessTree(command(prism), environment(prism, scratch)) as tree:
            console.note(STARTING[prism.stage])
            watch = Watch(tree, console, prism, stacks_file(scratch))
            status = watch.wait()
            outcome = read_outcome(prism)
            if status == 0:
                console.finish(outcome["figures"], made=result(prism))
                if prism.stage == "eval":
                    console.print(results_table(json.loads((prism.output / "results.json").read_text())))
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; log in {console.log_path}\n")
        return 130
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if "mistake" in outcome:
        raise UserError(outcome["mistake"])
    if status:
        sys.stderr.write(failure_text(prism, status, console, watch))
    return 1 if status else 0


def clear_output(prism: Prism) -> None:
    """Removes what an earlier run of the stage left, so that nobody takes it for this run's."""
    prism.output.mkdir(parents=True, exist_ok=True)
    (prism.output / OUTCOME).unlink(missing_ok=True)
    if prism.stage == "eval":
        return
    for key, folder in model_folders(prism).items():
        if folder.is_relative_to(result(prism)):
            raise UserError(f"prism.output={prism.output}: the stage would write over {key}, which it starts from")
    shutil.rmtree(result(prism), ignore_errors=True)


def read_outcome(prism: Prism) -> dict[str, Any]:
    """What the stage's process left: `figures`, or a `mistake` of the user, or nothing where it broke down."""
    file = prism.output / OUTCOME
    return json.loads(file.read_text()) if file.exists() else {}


def command(prism: Prism) -> list[str]:
    run = ["-m", "verl_prism.stages.run", str(prism.output / "config.yaml")]
    if prism.stage == "sft" and prism.hardware.devices_per_node > 1:
        ranks = f"--nproc-per-node={prism.hardware.devices_per_node}"
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", ranks, *run]
    return [sys.executable, *run]


def environment(prism: Prism, scratch: Path) -> dict[str, str]:
    """Variables that must be there before Python starts, or that Ray's workers inherit."""
    ours = {
        "PYTHONUNBUFFERED": "1",
        STACKS_VARIABLE: str(stacks_file(scratch)),
        "RAY_TMPDIR": str(scratch),
        "VLLM_RPC_BASE_PATH": str(scratch),
        "VERL_FILE_LOGGER_PATH": str(prism.output / "metrics.jsonl"),
    }
    hardware = cpu_environment() if prism.hardware.device == "cpu" else {}
    return {**hardware, **os.environ, **ours}


def stacks_file(scratch: Path) -> Path:
    """Where processes write their stacks when asked."""
    return scratch / "stacks"


def result(prism: Prism) -> Path:
    """What the stage leaves for the next one."""
    match prism.stage:
        case "warmup":
            return prism.output / "discriminator"
        case "eval":
            return prism.output
    return prism.output / "policy"
