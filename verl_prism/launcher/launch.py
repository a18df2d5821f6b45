"""The parent process of a stage: it owns the terminal, runs the stage and reports how it ended."""

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_prism.checkpoints.fingerprint import checkpoint_store
from verl_prism.checkpoints.preemption import EXIT_SAVED, ignore_requests, listen_for_requests
from verl_prism.checkpoints.resume import check_settings, checkpoint_to_resume, resume_notes
from verl_prism.checkpoints.store import Checkpoint, comparable, published
from verl_prism.config import ON_RAY, ONLY_SAMPLE, Prism, Stage, flatten
from verl_prism.cpu.environment import cpu_environment
from verl_prism.data.checks import model_folders
from verl_prism.errors import UserError
from verl_prism.launcher.console import StageConsole
from verl_prism.launcher.failure import failure_text
from verl_prism.launcher.logger_files import logger_environment
from verl_prism.launcher.network import network_environment
from verl_prism.launcher.process_tree import STOP_SIGNALS, ProcessTree
from verl_prism.launcher.stacks import STACKS_VARIABLE
from verl_prism.launcher.watch import Watch
from verl_prism.redaction import Redactor, run_redactor
from verl_prism.report.measures_table import measures_table
from verl_prism.report.metrics import join_records, keep_steps
from verl_prism.report.step_samples import keep_samples
from verl_prism.report.summary import shown_metrics
from verl_prism.report.table import results_table
from verl_prism.run_folder import RunFolder

EXIT_FAILED = 1
EXIT_STOPPED = 130

FIRST_PHASE: dict[Stage, str] = {
    "sft": "loading the model and the demonstrations",
    "warmup": "loading the policy",
    "align": "starting Ray, the policy, vLLM and the discriminator",
    "rlvr": "starting Ray, the policy and vLLM",
    "dpo": "loading the policy",
    "sample": "loading the policy",
    "eval": "loading the policy",
}

# The iteration order of sets, and GPU kernels with a fixed order of summation.
# In the stages on Ray verl sets these too.
REPRODUCIBLE = {
    "PYTHONHASHSEED": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_BATCH_INVARIANT": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "FLASH_ATTENTION_DETERMINISTIC": "1",
    "NCCL_ALGO": "Ring",
}

Outcome = dict[str, Any]


def launch(config: DictConfig, prism: Prism) -> int:
    """Run a stage and return the exit code.

    0: the stage is complete. 1: it failed. 75: it saved and ended early, as SIGUSR1 requests.
    130: it was stopped by Ctrl-C, SIGTERM or SIGHUP.

    Raises UserError if the stage found a mistake in its input.
    """
    run = RunFolder(prism.output)
    checkpoint: Checkpoint | None = None
    notes: list[str] = []
    if prism.resume:
        checkpoint, damaged = checkpoint_to_resume(
            checkpoint_store(prism), prism.stage, prism.steps
        )
        if is_complete(prism, run, checkpoint):
            sys.stdout.write(f"stage {prism.stage} is complete: {run.result(prism.stage)}\n")
            return 0
        notes = resume_notes(run, checkpoint, damaged)
    prepare_output(prism, run, checkpoint)
    if checkpoint and prism.stage != "warmup":
        config.trainer.resume_mode = "resume_path"
        config.trainer.resume_from_path = str(checkpoint.folder)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    ignore_requests()
    # Ray's sockets are below this folder, and a socket's path has at most 107 characters.
    scratch = Path(tempfile.mkdtemp(prefix="prism-", dir="/tmp"))
    try:
        return run_process(config, prism, scratch, checkpoint.step if checkpoint else 0, notes)
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped; {kept_text(prism, run)}; log in {run.log}\n")
        return EXIT_STOPPED
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        join_records(run)


def kept_text(prism: Prism, run: RunFolder) -> str:
    """Return what a run that was stopped leaves for the next one."""
    checkpoint, _ = checkpoint_store(prism).newest()
    if checkpoint is not None:
        return f"prism.resume=true continues from the checkpoint of step {checkpoint.step}"
    if run.rollouts.exists() or run.sample_journals.exists():
        return "prism.resume=true continues with the responses that were sampled"
    if run.reference.exists():
        return "prism.resume=true continues with the log-probabilities that were computed"
    return "no checkpoint was saved yet (prism.checkpoint_every)"


def is_complete(prism: Prism, run: RunFolder, checkpoint: Checkpoint | None) -> bool:
    """Return whether the stage has made all requested steps and exported its result.

    Raises UserError if the discriminator of stage warmup was trained with different settings.
    """
    if not run.result(prism.stage).exists():
        return False
    if prism.stage == "warmup":  # it exports its result when it has made all steps
        _check_discriminator(prism, run)
        return True
    return checkpoint is not None and checkpoint.step == prism.steps


def _check_discriminator(prism: Prism, run: RunFolder) -> None:
    """Compare the settings of a finished warm-up with this run's, as for a checkpoint.

    Older versions did not keep them.
    """
    if not run.discriminator_settings.exists():
        return
    wanted = checkpoint_store(prism).fingerprint
    saved = json.loads(run.discriminator_settings.read_text())
    settings = comparable(saved, wanted)
    check_settings(Checkpoint(run.discriminator, prism.steps, {}, settings), wanted)


def prepare_output(prism: Prism, run: RunFolder, checkpoint: Checkpoint | None) -> None:
    """Create the output folder, and remove what an earlier run of the stage left in it.

    Without a checkpoint to resume from, an earlier run's results are set aside, and its checkpoints
    until this run has one.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    for file in (run.outcome, run.end_request, run.summary, run.report):
        file.unlink(missing_ok=True)
    if prism.stage in ONLY_SAMPLE:
        return
    _check_inputs_are_kept(prism, run)
    shutil.rmtree(run.unfinished_checkpoints, ignore_errors=True)
    if checkpoint:
        for folder in (run.policy, run.discriminator):
            shutil.rmtree(folder, ignore_errors=True)
        run.discriminator_settings.unlink(missing_ok=True)
        keep_steps(run, checkpoint.metrics, checkpoint.step)
        keep_samples(run, checkpoint.step)
        return
    run.earlier_metrics.unlink(missing_ok=True)
    run.step_samples.unlink(missing_ok=True)
    for folder in (run.policy, run.discriminator):
        if folder.exists():
            _set_aside(folder, run.replaced(folder))
    run.discriminator_settings.unlink(missing_ok=True)
    if published(run):
        _set_aside(run.checkpoints, run.replaced_checkpoints)


def _set_aside(folder: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def _check_inputs_are_kept(prism: Prism, run: RunFolder) -> None:
    for key, folder in model_folders(prism).items():
        for overwritten in (run.policy, run.discriminator, run.checkpoints):
            if folder.is_relative_to(overwritten):
                raise UserError(
                    f"prism.output={run.path}: the stage would overwrite {key}, which it starts "
                    "from. Choose another output folder"
                )


def run_process(
    config: DictConfig, prism: Prism, scratch: Path, first_step: int, notes: list[str]
) -> int:
    """Run the stage's process, watch it, and return the exit code.

    scratch: the run's temporary folder. notes: shown on the console first.
    """
    run = RunFolder(prism.output)
    variables = environment(prism, scratch)
    redact = run_redactor(config, variables)
    OmegaConf.save(redact.config(config), run.config)
    config_file = scratch / run.config.name  # with secrets: only the user can read this folder
    OmegaConf.save(config, config_file)
    console = _console(prism, run, first_step, redact)
    with console, ProcessTree(command(config_file), variables) as tree:
        for note in notes:
            console.say(note)
        listen_for_requests(run)
        console.note(FIRST_PHASE[prism.stage])
        watch = Watch(
            tree,
            console,
            Path(variables[STACKS_VARIABLE]),
            on_ray=prism.stage in ON_RAY,
            stall_seconds=prism.stall_seconds,
        )
        status = watch.wait()
        outcome = read_outcome(run)
        if status == 0 and "metrics" in outcome:
            console.finish(outcome["metrics"], run.result(prism.stage))
            console.say(_write_report(run))
            if prism.stage == "eval":
                results = json.loads(run.results.read_text())
                console.print(results_table(results))
                console.print(measures_table(results))
    return _report_end(prism, status, outcome, console, watch)


def _write_report(run: RunFolder) -> str:
    """Write the run's report, and return a line about it. A failure does not fail the run."""
    from verl_prism.report.page import write_report

    try:
        write_report([run.path], run.report)
    except Exception as error:
        return f"  no report: {type(error).__name__}: {error}"
    return f"  report: {run.report}"


def _console(prism: Prism, run: RunFolder, first_step: int, redact: Redactor) -> StageConsole:
    only_samples = prism.stage in ONLY_SAMPLE
    return StageConsole(
        prism.stage,
        run,
        total_steps=None if only_samples else prism.steps,
        shown=shown_metrics(prism.stage, prism.algorithm.dynamic_sampling),
        first_step=first_step,
        redact=redact,
        unit="responses" if only_samples else "steps",
    )


def _report_end(
    prism: Prism, status: int, outcome: Outcome, console: StageConsole, watch: Watch
) -> int:
    """Return the exit code, after a message about a failure or an early end.

    Raises UserError if the stage found a mistake in its input.
    """
    if "error" in outcome:
        raise UserError(outcome["error"])
    if status:
        settings = dict(flatten(prism.model_dump(), "prism"))
        sys.stderr.write(failure_text(prism.stage, status, console, watch, settings))
        return EXIT_FAILED
    if problem := console.log_problem():
        sys.stderr.write(f"verl_prism: note: {problem}\n")
    if "saved_step" in outcome:
        step = outcome["saved_step"]
        sys.stderr.write(f"saved at step {step} as requested; continue with prism.resume=true\n")
        return EXIT_SAVED
    return 0


def read_outcome(run: RunFolder) -> Outcome:
    """Return `metrics`, `error` or `saved_step`, as the stage left it; nothing if it crashed."""
    if not run.outcome.exists():
        return {}
    return json.loads(run.outcome.read_text())


def command(config_file: Path) -> list[str]:
    """Return the command that runs the stage. The stage itself starts its other processes."""
    return [sys.executable, "-m", "verl_prism.stages.run", str(config_file)]


def environment(prism: Prism, scratch: Path) -> dict[str, str]:
    """Return the environment of the stage's process, which Ray's workers inherit.

    The user's own variables take precedence over the defaults for the network, the CPU and the
    loggers only.
    """
    single_node = prism.hardware.nodes == 1 and prism.hardware.ray_address is None
    variables = network_environment(single_node, prism.hub.offline, scratch)
    if prism.hardware.device == "cpu":
        variables |= cpu_environment()
    variables |= logger_environment(RunFolder(prism.output))
    variables |= os.environ
    if prism.reproducible:
        variables |= REPRODUCIBLE
    return variables | {
        "PYTHONUNBUFFERED": "1",
        STACKS_VARIABLE: str(scratch / "stacks"),
        "RAY_TMPDIR": str(scratch),
        "VLLM_RPC_BASE_PATH": str(scratch),
        "VERL_FILE_LOGGER_PATH": str(RunFolder(prism.output).metrics),
    }
