"""The GPUs of this host, and whether its processes can communicate."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from verl_prism.doctor.finding import GIB, Case, Finding, error, gib, note, ok, warning

MIN_CAPABILITY = (8, 0)  # bfloat16 and FlashAttention 2
MIN_DRIVER = 580  # for CUDA 13
ALL_REDUCE_SECONDS = 120


@dataclass(frozen=True)
class Gpu:
    """A GPU as NVML describes it. `memory` and `used` are bytes."""

    name: str
    memory: int
    used: int
    capability: tuple[int, int]
    driver: str


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that CUDA shows to a process with this environment; [] without a driver.

    Numbers in CUDA_VISIBLE_DEVICES are assumed to follow the PCI bus, as NVML's numbers do. CUDA
    itself counts like that only if CUDA_DEVICE_ORDER=PCI_BUS_ID or if all GPUs are equal.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = _visible_handles(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return [_gpu(handle) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def _visible_handles(visible: str | None) -> list[Any]:
    """Return what CUDA_VISIBLE_DEVICES selects. Like CUDA, stop at the first invalid entry."""
    count = pynvml.nvmlDeviceGetCount()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    if visible is None:
        return handles
    selected: list[Any] = []
    for entry in visible.split(","):
        handle = _handle_of(entry.strip(), handles)
        if handle is None:
            break
        selected.append(handle)
    return selected


def _handle_of(entry: str, handles: Sequence[Any]) -> Any | None:
    """Return the GPU that one entry of CUDA_VISIBLE_DEVICES names.

    An entry is a number, a GPU's UUID or a prefix of it ("GPU-…"), or a MIG instance ("MIG-…").
    """
    if entry.isdigit():
        return handles[int(entry)] if int(entry) < len(handles) else None
    if entry.startswith("GPU-"):
        for handle in handles:
            if pynvml.nvmlDeviceGetUUID(handle).startswith(entry):
                return handle
    if entry.startswith("MIG-"):
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(entry)
        except pynvml.NVMLError:
            return None
    return None


def _gpu(handle: Any) -> Gpu:
    # Version 2 does not count memory that the driver reserves as used.
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    whole = handle
    if pynvml.nvmlDeviceIsMigDeviceHandle(handle):
        whole = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(whole)
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        memory=memory.total,
        used=memory.used,
        capability=(major, minor),
        driver=pynvml.nvmlSystemGetDriverVersion(),
    )


def check_gpus(case: Case) -> Iterator[Finding]:
    """Check number, generation, free memory and driver of the GPUs."""
    hardware = case.prism.hardware
    if hardware.device == "cpu":
        yield ok("not needed")
        return
    if case.uses_ray and hardware.ray_address is not None:
        yield ok("see Ray below")
        return
    if case.without_gpu:
        yield note(
            f"no GPU here: checked for the run's hosts, {hardware.nodes} with "
            f"{hardware.devices_per_node} each; run the doctor there too"
        )
        return
    gpus = visible_gpus()
    needed = case.prism.devices if hardware.nodes == 1 else hardware.devices_per_node
    if len(gpus) < needed:
        yield error(
            f"{len(gpus)} GPUs are visible; the run needs {needed}",
            "lower prism.hardware.devices_per_node, or check CUDA_VISIBLE_DEVICES and nvidia-smi",
        )
    for number, gpu in enumerate(gpus[:needed]):
        yield from _check_gpu(number, gpu)
    if gpus and int(gpus[0].driver.partition(".")[0]) < MIN_DRIVER:
        yield error(
            f"the NVIDIA driver is {gpus[0].driver}; CUDA 13 needs {MIN_DRIVER} or later",
            "install a newer driver",
        )
    yield ok(f"{len(gpus)} x {gpus[0].name}" if gpus else "none")


def _check_gpu(number: int, gpu: Gpu) -> Iterator[Finding]:
    if gpu.capability < MIN_CAPABILITY:
        major, minor = gpu.capability
        yield error(
            f"GPU {number}, {gpu.name}, has compute capability {major}.{minor}; 8.0 is needed",
            "use an Ampere GPU or a later one",
        )
    if gpu.used > GIB:
        yield warning(
            f"GPU {number}: {gib(gpu.used)} are in use", "see nvidia-smi for the processes"
        )


def check_communication(case: Case) -> Iterator[Finding]:
    """Run an all-reduce between two processes: by NCCL if each can have a GPU, else by gloo."""
    on_gpus = case.prism.hardware.device == "cuda" and len(visible_gpus()) > 1
    backend = "nccl" if on_gpus else "gloo"
    problem = all_reduce_problem(backend)
    if problem is not None:
        fix = f"set {backend.upper()}_SOCKET_IFNAME to a network interface of this host"
        if on_gpus:
            fix += "; NCCL_DEBUG=INFO shows more"
        yield error(f"all_reduce between two processes by {backend} failed: {problem}", fix)
    yield ok(f"all_reduce by {backend}")


def all_reduce_problem(backend: str) -> str | None:
    """Run an all-reduce between two new processes, and return the error message if it fails."""
    with tempfile.TemporaryDirectory(prefix="prism-") as folder:
        store = Path(folder, "store")
        processes = [_start_rank(backend, store, rank) for rank in range(2)]
        try:
            messages = [process.communicate(timeout=ALL_REDUCE_SECONDS)[1] for process in processes]
        except subprocess.TimeoutExpired:
            return f"no answer within {ALL_REDUCE_SECONDS} s"
        finally:
            for process in processes:
                process.kill()
                process.wait()
    if all(process.returncode == 0 for process in processes):
        return None
    return last_line("\n".join(reversed(messages)))


def _start_rank(backend: str, store: Path, rank: int) -> "subprocess.Popen[str]":
    module = "verl_prism.doctor.all_reduce"
    return subprocess.Popen(
        [sys.executable, "-m", module, backend, str(store), str(rank)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_line(text: str) -> str:
    """Return the last line that is not blank: the message of a traceback."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
