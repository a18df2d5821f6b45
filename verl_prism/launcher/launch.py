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

from verl_prism.checkpoints.preemption import (
    EXIT_SAVED,
    ignore_requests,
    listen_for_requests,
    request_file,
)
from verl_prism.checkpoints.resume import checkpoint_to_resume, finished, starting_point
from verl_prism.checkpoints.store import (
    Checkpoint,
    checkpoints_folder,
    published,
    replaced_folder,
    unfinished_folder,
)
from verl_prism.config import Prism, Stage
from verl_prism.cpu.environment import cpu_environment
from verl_prism.data.checks import model_folders
from verl_prism.errors import UserError
from verl_prism.launcher.console import StageConsole
from verl_prism.launcher.failure import failure_text
from verl_prism.launcher.network import network_environment
from verl_prism.launcher.process_tree import STOP_SIGNALS, ProcessTree
from verl_prism.launcher.stacks import STACKS_VARIABLE
from verl_prism.launcher.watch import Watch
from verl_prism.redaction import run_redactor
from verl_prism.report.metrics import EARLIER, METRICS, join_records, keep_steps
from verl_prism.report.summary import shown
from verl_prism.report.table import results_table
from verl_prism.stages.run import OUTCOME

CONFIG = "config.yaml"
STARTING: dict[Stage, str] = {
    "sft": "loading the model and the demonstrations",
    "warmup": "loading the policy",
    "align": "starting Ray, the policy, vLLM and the discriminator",
    "rlvr": "starting Ray, the policy and vLLM",
    "eval": "loading the policy",
}

# The order of sets, and kernels on GPUs whose sums come in one order; verl sets them too, in the stages that use Ray.
REPRODUCIBLE = {
    "PYTHONHASHSEED": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_BATCH_INVARIANT": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "FLASH_ATTENTION_DETERMINISTIC": "1",
    "NCCL_ALGO": "Ring",
}


def launch(config: DictConfig, prism: Prism) -> int:
    """Returns the exit code: 0; 1 where the stage failed; 75 where it saved and ended early, as SIGUSR1 asks; 130 where
    it was stopped by Ctrl-C, SIGTERM or SIGHUP.

    Raises UserError where the stage itself found a mistake in its input.
    """
    checkpoint, damaged = checkpoint_to_resume(prism) if prism.resume else (None, [])
    if prism.resume and finished(prism, checkpoint, result(prism)):
        sys.stdout.write(f"stage {prism.stage} is complete: {result(prism)}\n")
        return 0
    clear_output(prism, checkpoint)
    if checkpoint and prism.stage != "warmup":
        config.trainer.resume_mode, config.trainer.resume_from_path = (
            "resume_path",
            str(checkpoint.folder),
        )
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    ignore_requests()
    scratch = Path(
        tempfile.mkdtemp(prefix="prism-", dir="/tmp")
    )  # short: a socket's path has 107 characters at most
    try:
        return run(
            config,
            prism,
            scratch,
            checkpoint.step if checkpoint else 0,
            starting_point(prism, checkpoint, damaged),
        )
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; log in {prism.output / 'log.txt'}\n")
        return 130
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        join_records(prism.output)


def run(config: DictConfig, prism: Prism, scratch: Path, first_step: int, notes: list[str]) -> int:
    """Starts the stage's process, watches it and says how it ended. notes: to be shown first."""
    variables = environment(prism, scratch)
    redact = run_redactor(config, variables)
    OmegaConf.save(redact.config(config), prism.output / CONFIG)
    OmegaConf.save(
        config, scratch / CONFIG
    )  # with its secrets: the folder is open to the user alone
    steps = None if prism.stage == "eval" else prism.steps
    headline = [f"{label}={key}" for label, key in shown(prism).items()]
    console = StageConsole(prism.stage, prism.output, steps, headline, first_step, redact)
    with console, ProcessTree(command(prism, scratch), variables) as tree:
        for note in notes:
            console.say(note)
        listen_for_requests(prism)
        console.note(STARTING[prism.stage])
        watch = Watch(tree, console, prism, stacks_file(scratch))
        status = watch.wait()
        outcome = read_outcome(prism)
        if status == 0 and "figures" in outcome:
            console.finish(outcome["figures"], made=result(prism))
            if prism.stage == "eval":
                console.print(
                    results_table(json.loads((prism.output / "results.json").read_text()))
                )
    if "mistake" in outcome:
        raise UserError(outcome["mistake"])
    if status == 0 and "saved" in outcome:
        sys.stderr.write(
            f"saved at step {outcome['saved']} as asked; prism.resume=true goes on from there\n"
        )
        return EXIT_SAVED
    if status:
        sys.stderr.write(failure_text(prism, status, console, watch))
    return 1 if status else 0


def clear_output(prism: Prism, checkpoint: Checkpoint | None) -> None:
    """Removes what an earlier run of the stage left, so that nobody takes it for this run's.

    Without a checkpoint to go on from, earlier ones are set aside until this run has one.
    """
    prism.output.mkdir(parents=True, exist_ok=True)
    for stale in (prism.output / OUTCOME, request_file(prism)):
        stale.unlink(missing_ok=True)
    if prism.stage == "eval":
        return
    for key, folder in model_folders(prism).items():
        made = (prism.output / "policy", prism.output / "discriminator", checkpoints_folder(prism))
        if any(map(folder.is_relative_to, made)):
            raise UserError(
                f"prism.output={prism.output}: the stage would write over {key}, which it starts from"
            )
    for part in ("policy", "discriminator"):
        shutil.rmtree(prism.output / part, ignore_errors=True)
    shutil.rmtree(unfinished_folder(prism), ignore_errors=True)
    if checkpoint:
        keep_steps(prism.output, checkpoint.folder / METRICS, checkpoint.step)
        return
    (prism.output / EARLIER).unlink(missing_ok=True)
    if published(prism):
        shutil.rmtree(replaced_folder(prism), ignore_errors=True)
        checkpoints_folder(prism).rename(replaced_folder(prism))


def read_outcome(prism: Prism) -> dict[str, Any]:
    """What the stage's process left: `figures`, a user's `mistake`, the step `saved`, or nothing if it broke down."""
    file = prism.output / OUTCOME
    return json.loads(file.read_text()) if file.exists() else {}


def command(prism: Prism, scratch: Path) -> list[str]:
    run = ["-m", "verl_prism.stages.run", str(scratch / CONFIG)]
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
    repeatable = REPRODUCIBLE if prism.reproducible else {}
    return {**network_environment(prism, scratch), **hardware, **os.environ, **repeatable, **ours}


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
