"""The GPU, its driver, the packages, and what the device can do at best."""

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils._triton import has_triton

from verl_prism.discriminator import process_group
from verl_prism.gpu_check.record import Options, Record

PACKAGES = (
    *("torch", "transformers", "triton", "safetensors", "tokenizers", "numpy", "pillow"),
    *("verl", "vllm", "ray", "flash-attn"),
)
SMI_FIELDS = "name,driver_version,memory.total,memory.used,power.limit,clocks.max.sm"
SIDE = 8192  # of the square matrices of the timed product


def describe(options: Options, record: Record) -> None:
    """Record versions and devices. Time a matrix product and a collective on a GPU."""
    record.add(
        python=platform.python_version(),
        system=platform.platform(),
        processors=os.cpu_count(),
        packages={name: _version(name) for name in PACKAGES},
        cuda=torch.version.cuda,
        triton_works=has_triton(),
        grouped_mm=hasattr(F, "grouped_mm"),
        nvidia_smi=_nvidia_smi(),
        gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
    )
    if options.device != "cuda" or not record.values["gpus"]:
        return
    record.add(devices=[_device(index) for index in range(record.values["gpus"])])
    record.require("torch.nn.functional.grouped_mm exists", hasattr(F, "grouped_mm"), True)
    record.require("Triton works", has_triton(), True)
    with record.part("matrix product"):
        record.add(matmul_tflops=_matmul_tflops())
    with record.part("NCCL on one rank"), process_group("cuda") as ranks:
        dist.all_reduce(torch.ones(1, device=ranks.device))
        torch.cuda.synchronize()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nvidia_smi() -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as failure:
        return [f"{type(failure).__name__}: {failure}"]
    return (done.stdout or done.stderr).splitlines()


def _device(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(total / 2**30, 2),
        "free_gib": round(free / 2**30, 2),
    }


def _matmul_tflops(repeats: int = 20) -> float:
    """Return the speed of a product of random bf16 matrices."""
    left = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    right = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        left @ right
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        left @ right
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / repeats
    return round(2 * SIDE**3 / seconds / 1e12, 1)
