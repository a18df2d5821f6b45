"""The GPUs of this host, and whether processes on it can talk to one another."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from verl_prism.doctor.finding import Case, Finding, fault, ok, warning
from verl_prism.doctor.memory import GIB

CAPABILITY = 8.0  # bfloat16 and FlashAttention 2
DRIVER = 580  # of CUDA 13
QUERY = "name,memory.total,memory.used,compute_cap,driver_version"
TALK_SECONDS = 120


@dataclass(frozen=True)
class Gpu:
    """memory, used: bytes."""

    name: str
    memory: int
    used: int
    capability: float
    driver: str


def visible_gpus() -> list[Gpu]:
    """As nvidia-smi tells, those of CUDA_VISIBLE_DEVICES alone where it is set; none where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told = answer.stdout.splitlines() if answer.returncode == 0 else []
    lines = [line.split(", ") for line in told if line.strip()]
    gpus = [
        Gpu(line[0], int(line[1]) << 20, int(line[2]) << 20, float(line[3]), line[4])
        for line in lines
    ]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    named = [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    return [
        gpus[int(name)] if name.isdigit() and int(name) < len(gpus) else gpu
        for name, gpu in zip(named, gpus, strict=False)
    ]


def gpus(case: Case) -> Iterator[Finding]:
    hardware = case.prism.hardware
    if hardware.device == "cpu":
        yield ok("none needed")
        return
    found = visible_gpus()
    if case.rl and hardware.ray_address is not None:
        yield ok("Ray's, asked below")
        return
    wanted = case.prism.devices if hardware.nodes == 1 else hardware.devices_per_node
    if len(found) < wanted:
        yield fault(
            f"{len(found)} GPUs to be seen here; {wanted} are wanted",
            "lower prism.hardware.devices_per_node, or see CUDA_VISIBLE_DEVICES and nvidia-smi",
        )
    for number, gpu in enumerate(found[:wanted]):
        if gpu.capability < CAPABILITY:
            yield fault(
                f"GPU {number}, {gpu.name}, has compute capability {gpu.capability}, not {CAPABILITY}",
                "choose an Ampere GPU or a later one",
            )
        if gpu.used > GIB:
            yield warning(
                f"GPU {number}: {gpu.used / GIB:.1f} GiB are in use", "nvidia-smi shows by whom"
            )
    if found and int(found[0].driver.partition(".")[0]) < DRIVER:
        yield fault(
            f"the NVIDIA driver is {found[0].driver}; CUDA 13 wants {DRIVER}",
            "install a newer driver",
        )
    yield ok(f"{len(found)} x {found[0].name}" if found else "none")


def talk(case: Case) -> Iterator[Finding]:
    """A real all_reduce between two processes of this host: NCCL where each can have a GPU, else gloo."""
    nccl = case.prism.hardware.device == "cuda" and len(visible_gpus()) > 1
    backend, prefix = ("nccl", "NCCL") if nccl else ("gloo", "GLOO")
    with tempfile.TemporaryDirectory(prefix="prism-") as folder:
        command = [sys.executable, "-m", "verl_prism.doctor.all_reduce", backend, f"{folder}/store"]
        two = [
            subprocess.Popen(
                [*command, str(rank)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            for rank in range(2)
        ]
        try:
            errors = [process.communicate(timeout=TALK_SECONDS)[1] for process in two]
        except subprocess.TimeoutExpired:
            errors = [f"no answer within {TALK_SECONDS} s"] * 2
        finally:
            for process in two:
                process.kill()
    if any(process.wait() for process in two):
        said = next(
            (line for error in errors for line in reversed(error.splitlines()) if line.strip()),
            "no message",
        )
        yield fault(
            f"two processes cannot add up numbers by {backend}: {said}",
            f"see {prefix}_SOCKET_IFNAME (a network interface of this host)"
            + (", NCCL_DEBUG=INFO" if nccl else ""),
        )
    yield ok(f"all_reduce by {backend}")
