"""Every stage through the command line, with a generated Qwen3-VL on the digits.

SFT makes more than two steps, because the later stages need a policy that knows the format.
"""

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from verl_prism.gpu_check.record import Options, Record, Skip, last_lines

CHECKOUT = Path(__file__).parents[2]
DIGITS = CHECKOUT / "examples" / "digits"
LOG_LINES = 60  # of a failed stage's log
STOP_BEFORE_LIMIT = 30.0  # seconds for a stage to end its processes

# One device and few helper processes.
COMMON = (
    "model=digits",
    "prism.hardware.agent_workers=1",
    "prism.hardware.reward_workers=1",
    "prism.hardware.storage_units=1",
)
GROUPS = ("prism.rollout.prompts_per_step=4", "prism.rollout.samples_per_prompt=4")
SFT = (
    "prism.steps=120",
    "prism.sft.examples_per_step=16",
    "prism.optim.warmup_steps=10",
)
STAGES: dict[str, tuple[str, ...]] = {
    "sft": SFT,
    "warmup": (
        "prism.steps=2",
        "prism.warmup.prompts=60",
        "prism.warmup.samples_per_prompt=2",
        "prism.warmup.pairs_per_step=16",
    ),
    "align": ("prism.steps=2", *GROUPS),
    "rlvr": ("algorithm=grpo", "prism.steps=2", *GROUPS),
    "eval": ("prism.eval.max_questions=20",),
}
NEEDED = {
    "sft": "base",
    "warmup": "sft/policy",
    "align": "warmup/discriminator",
    "rlvr": "align/policy",
    "eval": "rlvr/policy",
}
# A narrow model needs a high rate, a wide one does not stand it.
LEARNING_RATES = {"tiny": "2e-3", "100m": "3e-4"}


def prepare(options: Options, record: Record) -> None:
    """Make the data and the model: of 100 million parameters, or of 1.4 million if quick."""
    if not DIGITS.exists():
        raise Skip("needs a checkout of the repository, for examples/digits")
    root = _root(options)
    data = ["--out", str(root / "data")]
    _run([sys.executable, str(DIGITS / "data.py"), *data], options)
    model = ["--data", str(root / "data"), "--out", str(root / "base"), "--size", _size(options)]
    output = _run([sys.executable, str(DIGITS / "model.py"), *model], options)
    record.add(model=last_lines(output, 1))


def run_stage(options: Options, record: Record, stage: str) -> None:
    """Run a stage, and record its command, its time and its last metrics."""
    root = _root(options)
    if not (root / NEEDED[stage]).exists():
        raise Skip(f"there is no {NEEDED[stage]}, which an earlier step should have made")
    arguments = [f"stage={stage}", *COMMON, *_hardware(options), *STAGES[stage]]
    if stage == "sft":
        arguments.append(f"prism.optim.lr={LEARNING_RATES[_size(options)]}")
    record.add(command=" ".join(arguments))
    start = time.monotonic()
    command = [sys.executable, "-m", "verl_prism.main", *arguments, f"prism.root={root}"]
    try:
        output = _run(command, options)
    except RuntimeError:
        record.add(log=last_lines(_read(root / stage / "log.txt"), LOG_LINES))
        raise
    record.add(stage_seconds=round(time.monotonic() - start, 1), output=last_lines(output))
    record.add(metrics=last_metrics(_read(root / stage / "metrics.jsonl")))


def _root(options: Options) -> Path:
    return options.work / "digits"


def _size(options: Options) -> str:
    return "tiny" if options.quick else "100m"


def _hardware(options: Options) -> list[str]:
    if options.device == "cpu":
        return ["hardware=cpu"]
    keys = ["hardware=cuda", "prism.hardware.gpu_memory_utilization=0.3"]
    if find_spec("flash_attn") is None:
        keys.append("prism.hardware.attention=sdpa")
    return keys


def _run(command: list[str], options: Options) -> str:
    """Run a command from the checkout, and return what it writes.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    limit = max(options.seconds - STOP_BEFORE_LIMIT, 1.0)
    process = subprocess.Popen(
        command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends the stage's processes
        output, _ = process.communicate()
        raise RuntimeError(
            "\n".join([*last_lines(output), f"no end after {limit:.0f} s"])
        ) from None
    if process.returncode:
        raise RuntimeError("\n".join([*last_lines(output), f"exit code {process.returncode}"]))
    return output


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def last_metrics(text: str) -> dict[str, Any]:
    """Return the numbers of the last step in a metrics file."""
    records = [json.loads(line) for line in text.splitlines()]
    data = [record["data"] for record in records if "data" in record]
    return {name: value for name, value in (data or [{}])[-1].items() if _number(value)}


def _number(value: object) -> bool:
    return isinstance(value, int | float)
