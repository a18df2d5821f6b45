"""Checks of the devices, the number of nodes and the output folder."""

import os
from pathlib import Path

from verl_prism.config import ON_RAY, Hardware, Stage
from verl_prism.errors import UserError

GPU_FILES = (
    Path("/dev/nvidiactl"),  # NVIDIA
    Path("/dev/kfd"),  # AMD
    Path("/dev/dxg"),  # Windows Subsystem for Linux
)


def check_device(hardware: Hardware) -> None:
    """Check that this host has a GPU if the run is to use one here."""
    runs_here = hardware.ray_address is None
    if hardware.device == "cuda" and runs_here and not any(map(Path.exists, GPU_FILES)):
        raise UserError("hardware=cuda, but this host has no GPU; hardware=cpu runs without one")


def check_nodes(stage: Stage, hardware: Hardware) -> None:
    """Check that a run on several nodes is of a stage on Ray, and has a Ray that spans them."""
    if hardware.nodes == 1:
        return
    setting = f"prism.hardware.nodes={hardware.nodes}"
    if stage not in ON_RAY:
        raise UserError(f"{setting}: stage {stage} runs on one node")
    if hardware.ray_address is None:
        raise UserError(
            f"{setting} needs a Ray that runs on all of them: python -m verl_prism.cluster "
            "--hosts=... starts it, or set prism.hardware.ray_address to one that is running"
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
