"""The steps of the check in their order: the most valuable first.

Each step runs in a process of its own, because a CUDA error spoils every later call of its process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

PACKAGE = "verl_prism.gpu_check"
STAGE_PACKAGES = ("verl", "ray", "vllm", "pyarrow", "sklearn", "tokenizers")


@dataclass(frozen=True)
class Host:
    """What the steps run on. `gpus` is None if the environment step could not tell."""

    device: str
    quick: bool
    gpus: int | None


Need = Callable[[Host], str]  # returns why a step cannot run, or ""


def a_gpu(host: Host) -> str:
    """Need a GPU."""
    return "" if host.device == "cuda" else "needs a CUDA device"


def a_gpu_unless_quick(host: Host) -> str:
    """Need a GPU for the full size."""
    if host.device == "cuda" or host.quick:
        return ""
    return "needs a CUDA device; on a CPU only with --quick, at tiny sizes"


def two_devices(host: Host) -> str:
    """Need two GPUs, or the CPU, which two ranks share."""
    if host.device == "cpu" or host.gpus is None or host.gpus > 1:
        return ""
    return f"needs two visible GPUs, but there is {host.gpus}"


def stage_packages(host: Host) -> str:
    """Need the packages of the whole project."""
    missing = [name for name in STAGE_PACKAGES if find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


@dataclass(frozen=True)
class Step:
    """One step.

    function: `module:function`. It is called with Options, Record and `arguments`.
    seconds: time limit on a GPU.
    needs: conditions without which the step is skipped.
    """

    name: str
    function: str
    seconds: int
    needs: tuple[Need, ...] = ()
    arguments: tuple[Any, ...] = ()


def _size(prompt: int, caption: int, reasoning: int, image_side: int) -> Step:
    """Return a step of real size. Lengths are in tokens, the side of the image in patches."""
    name = f"size-{prompt}-{caption}-{reasoning}"
    shape = (prompt, caption, reasoning, image_side)
    return Step(name, f"{PACKAGE}.sizes:measure_size", 200, (a_gpu_unless_quick,), shape)


def _stage(stage: str) -> Step:
    return Step(f"stage-{stage}", f"{PACKAGE}.stages:run_stage", 300, (stage_packages,), (stage,))


STEPS = (
    Step("environment", f"{PACKAGE}.environment:describe", 120),
    Step("attention", f"{PACKAGE}.attention:compare_attention", 150),
    Step("precision", f"{PACKAGE}.precision:compare_precision", 150),
    Step("experts", f"{PACKAGE}.precision:watch_experts", 90),
    Step("checkpointing", f"{PACKAGE}.precision:compare_checkpointing", 90),
    Step("learning", f"{PACKAGE}.precision:learn", 90),
    _size(800, 300, 700, 34),
    _size(4096, 600, 5400, 120),
    Step("recompilations", f"{PACKAGE}.sizes:count_recompilations", 180, (a_gpu,)),
    _size(2048, 1000, 5000, 80),
    Step("reference", f"{PACKAGE}.sizes:compare_reference", 240, (a_gpu_unless_quick,)),
    _size(4096, 300, 1200, 120),
    Step("two-ranks", f"{PACKAGE}.two_ranks:compare_ranks", 180, (two_devices,)),
    Step("stage-prepare", f"{PACKAGE}.stages:prepare", 120, (stage_packages,)),
    *[_stage(name) for name in ("sft", "warmup", "align", "rlvr", "eval")],
)
