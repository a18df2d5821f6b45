"""Checks of the devices, the number of nodes and the output folder."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from verl_prism.config import ONLY_SAMPLE, Hardware, Prism
from verl_prism.errors import UserError

LOGGER_PACKAGES = {
    "wandb": "wandb",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "vemlp_wandb": "volcengine_ml_platform",
    "tensorboard": "tensorboard",
    "clearml": "clearml",
    "trackio": "trackio",
    "rl_insight": "rl_insight",
}
GPU_FILES = (
    Path("/dev/nvidiactl"),  # NVIDIA
    Path("/dev/kfd"),  # AMD
    Path("/dev/dxg"),  # Windows Subsystem for Linux
)


def check_device(prism: Prism) -> None:
    """Check that this host has a GPU, and the attention kernel, if the run is to use them here."""
    hardware = prism.hardware
    if hardware.device == "cpu" or hardware.ray_address is not None:
        return
    if not has_gpu():
        raise UserError("hardware=cuda, but this host has no GPU; hardware=cpu runs without one")
    if prism.stage in ONLY_SAMPLE:
        return  # vLLM has kernels of its own
    if hardware.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise UserError(
            "prism.hardware.attention=flash_attention_2, but flash-attn is not installed; set "
            "prism.hardware.attention=sdpa, or install it as docs/running.md says"
        )


def has_gpu() -> bool:
    """Return whether this host has a GPU with a driver."""
    return any(map(Path.exists, GPU_FILES))


def check_nodes(hardware: Hardware) -> None:
    """Check that a run on several nodes has a Ray that spans them."""
    if hardware.nodes > 1 and hardware.ray_address is None:
        raise UserError(
            f"prism.hardware.nodes={hardware.nodes} needs a Ray that runs on all of them: "
            "python -m verl_prism.cluster --hosts=... starts it, or set prism.hardware.ray_address "
            "to one that is running"
        )


def check_loggers(loggers: Sequence[str]) -> None:
    """Check that the packages of the loggers are installed."""
    for logger in loggers:
        package = LOGGER_PACKAGES.get(logger)
        if package is not None and find_spec(package) is None:
            raise UserError(
                f"prism.loggers: {logger} needs the package {package}, which is not installed; "
                "install it, or remove the logger"
            )


def check_output(output: Path) -> None:
    """Check that the output folder can be created and written to."""
    existing = next(path for path in (output, *output.parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise UserError(
            f"prism.output={output}: {existing} is a file, not a folder; "
            "set prism.output or prism.root"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"prism.output={output}: {existing} is not writable; set prism.output or prism.root"
        )
