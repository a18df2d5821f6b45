"""Run the steps one after another, each in a process with a time limit, and keep the report.

The report is a JSON file that is replaced before and after each step, so a kill loses only the
step that runs. This module needs nothing but the standard library.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verl_prism.files import write_atomically
from verl_prism.gpu_check.process import Task
from verl_prism.gpu_check.record import last_lines
from verl_prism.gpu_check.steps import Host, Step

LEAST_SECONDS = 15.0  # a step with less time left is not started
CPU_FACTOR = 4  # of a step's time limit without a GPU
REAP_SECONDS = 10.0  # a killed process that waits for a GPU may never end

TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # would join other processes

Report = dict[str, Any]
Show = Callable[[Report], None]


@dataclass(frozen=True)
class Plan:
    """What to run.

    device: `cuda`, `cpu`, or `auto`: CUDA if torch sees a GPU.
    seconds: time for all steps together.
    file: the report. The steps' output goes to the same name with the suffix `.log`.
    """

    steps: Sequence[Step]
    device: str
    quick: bool
    seconds: float
    file: Path

    @property
    def log(self) -> Path:
        """File of the steps' output."""
        return self.file.with_suffix(".log")


def run_steps(plan: Plan, show: Show = lambda result: None) -> Report:
    """Run all steps and return the report, whose `complete` is True.

    Args:
        show: called with the result of each step when it ends.
    """
    start = time.monotonic()
    plan.file.parent.mkdir(parents=True, exist_ok=True)
    plan.log.unlink(missing_ok=True)
    report: Report = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": plan.device,
        "quick": plan.quick,
        "complete": False,
        "seconds": 0.0,
        "steps": [],
    }
    host = Host("cuda" if plan.device == "auto" else plan.device, plan.quick, gpus=None)
    with _work_folder() as work:
        for step in plan.steps:
            left = plan.seconds - (time.monotonic() - start)
            report["steps"].append({"name": step.name, "status": "running"})
            _write(report, plan.file, start)
            result = {"name": step.name, **_run(step, host, plan, work, left)}
            report["steps"][-1] = result
            _write(report, plan.file, start)
            show(result)
            if step.name == "environment":
                host = _seen(host, plan.device, result)
                report["device"] = host.device
    report["complete"] = True
    _write(report, plan.file, start)
    return report


@contextmanager
def _work_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="prism-gpu-check-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(report: Report, file: Path, start: float) -> None:
    report["seconds"] = round(time.monotonic() - start, 1)
    write_atomically(file, json.dumps(report, indent=1) + "\n")


def _seen(host: Host, device: str, result: Report) -> Host:
    """Return the host as the environment step saw it. If it failed, assume that there is a GPU."""
    gpus = result.get("values", {}).get("gpus")
    if device == "auto" and gpus == 0:
        return replace(host, device="cpu", gpus=0)
    return replace(host, gpus=gpus)


def _run(step: Step, host: Host, plan: Plan, work: Path, left: float) -> Report:
    reasons = [reason for need in step.needs if (reason := need(host))]
    if left < LEAST_SECONDS:
        reasons.append(f"no time left of {plan.seconds:.0f} s")
    if reasons:
        return {"status": "skip", "seconds": 0.0, "reason": "; ".join(reasons)}
    start = time.monotonic()
    limit = float(step.seconds * (CPU_FACTOR if host.device == "cpu" else 1))
    task = Task(
        function=step.function,
        arguments=step.arguments,
        result=str(work / f"{step.name}.json"),
        device=host.device,
        quick=host.quick,
        work=str(work),
        seconds=min(limit, left),
    )
    with plan.log.open("a", encoding="utf-8") as log:
        log.write(f"\n===== {step.name}\n")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        end = _wait(task, output)
        output.seek(0)
        text = output.read()
    with plan.log.open("a", encoding="utf-8") as log:
        log.write(text)
    result = _result(Path(task.result), end, text)
    return {"status": result.pop("status"), "seconds": round(time.monotonic() - start, 1), **result}


def _wait(task: Task, output: Any) -> str:
    """Run a step's process, and return how it ended if it did not end by itself, else ""."""
    process = subprocess.Popen(
        task.command(),
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=_environment(),
        start_new_session=True,
    )
    try:
        code = process.wait(task.seconds)
    except subprocess.TimeoutExpired:
        return f"no end after {task.seconds:.0f} s"
    finally:
        _end(process)
    return f"ended by signal {-code}" if code < 0 else ""


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of a step: its process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    try:
        process.wait(REAP_SECONDS)
    except subprocess.TimeoutExpired:
        return


def _environment() -> dict[str, str]:
    """Return the environment of a step, in which nothing needs a network."""
    defaults = {
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    given = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    return defaults | given


def _result(file: Path, end: str, output: str) -> Report:
    """Return a step's record. A step that did not end by itself has failed."""
    try:
        result: Report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = {"status": "running", "reason": "", "error": [], "checks": [], "values": {}}
    if result["status"] == "running":
        result["status"] = "fail"
        result["reason"] = end or "the process ended without a result"
        result["error"] = last_lines(output)
    return result
