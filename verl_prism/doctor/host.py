"""Check the host that the doctor runs on: packages, environment, limits and disk space."""

import importlib.metadata
import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement

from verl_prism import plugin
from verl_prism.config import ONLY_SAMPLE
from verl_prism.doctor.finding import GIB, Case, Finding, error, gib, ok, warning
from verl_prism.doctor.memory_estimate import checkpoint_bytes

FLASH_ATTENTION = "flash-attn"  # seldom has a wheel, so it is optional
USE_SDPA = "set prism.hardware.attention=sdpa, or install it as docs/running.md says"
SETUP = {"cpu": "setup", "cuda": "setup-gpu"}  # targets of the Makefile, by device
SCRATCH = Path("/tmp")  # for Ray, and for verl's sockets
MIN_SCRATCH = GIB
ENOUGH_SCRATCH = 10 * GIB
SHARED_MEMORY = Path("/dev/shm")
MIN_FILES = 4096  # Ray's daemons open thousands
ENOUGH_FILES = 16384
ADVISED_FILES = 65536  # by Ray
MIN_PROCESSES = 8192  # including threads

# Values with which each variable is harmless, by device. Unset is harmless, too.
ALLOWED = {
    "cpu": {"VERL_PLATFORM": ("", "cpu"), "VERL_ENGINE_DEVICE": ("", "cuda")},
    "cuda": {"VERL_PLATFORM": ("", "nvidia"), "VERL_ENGINE_DEVICE": ("", "cuda")},
}
NO_GPUS = ("", "-1")  # values of CUDA_VISIBLE_DEVICES


def check_packages(case: Case) -> Iterator[Finding]:
    """Compare installed packages with the requirements of verl_prism for the device.

    flash-attn is required only if `prism.hardware.attention` needs it, and not by vLLM. verl also
    uses its kernel of the cross entropy, if it is installed.
    """
    hardware = case.prism.hardware
    extra = "cpu" if hardware.device == "cpu" else "gpu"
    fix = f"install the locked versions: make {SETUP[hardware.device]}"
    for requirement in requirements(extra).values():
        yield from _check_package(requirement, fix)
    if case.prism.stage in ONLY_SAMPLE:
        pass  # only vLLM runs, which has kernels of its own
    elif hardware.attention == "flash_attention_2":
        yield from _check_package(requirements("flash")[FLASH_ATTENTION], USE_SDPA)
    elif hardware.device == "cuda" and installed_version(FLASH_ATTENTION) is None:
        yield warning(
            "flash-attn is not installed, so verl computes the log-probabilities of bfloat16 "
            "logits one token at a time, which is slow",
            "install it as docs/running.md says; prism.hardware.attention may stay as it is",
        )
    names = ("verl", "torch", "transformers", "ray")
    versions = {name: installed_version(name) for name in names}
    yield ok(", ".join(f"{name} {version}" for name, version in versions.items() if version))


def requirements(extra: str) -> dict[str, Requirement]:
    """Return verl_prism's requirements by name, including those of an extra."""
    needed: dict[str, Requirement] = {}
    for text in importlib.metadata.requires("verl_prism") or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            needed[requirement.name] = requirement
    return needed


def installed_version(name: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_package(requirement: Requirement, fix: str) -> Iterator[Finding]:
    name, specifier = requirement.name, requirement.specifier
    installed = installed_version(name)
    if installed is None:
        yield error(f"{name} is not installed; {name}{specifier} is needed", fix)
    elif not specifier.contains(installed, prereleases=True):
        yield error(f"{name} is {installed}, not {specifier}", fix)


def check_plugin(case: Case) -> Iterator[Finding]:
    """Check that verl loads verl_prism."""
    plugin.assert_loaded()
    yield ok("verl loads verl_prism")


def check_environment(case: Case, variables: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check for environment variables that break the run. They override what the launcher sets."""
    hardware = case.prism.hardware
    if case.on_ray:
        yield from _check_ray_variables(case, variables)
    else:
        for name in ("RANK", "WORLD_SIZE"):
            if name in variables:
                yield error(
                    f"{name}={variables[name]} is left over from another launcher", f"unset {name}"
                )
    for name, allowed in ALLOWED[hardware.device].items():
        value = variables.get(name, "")
        if value not in allowed:
            yield error(
                f"{name}={value} contradicts prism.hardware.device={hardware.device}",
                f"unset {name}",
            )
    if hardware.device == "cuda" and variables.get("CUDA_VISIBLE_DEVICES") in NO_GPUS:
        yield error("CUDA_VISIBLE_DEVICES hides all GPUs", "unset CUDA_VISIBLE_DEVICES")
    yield ok("no conflicting variable")


def _check_ray_variables(case: Case, variables: Mapping[str, str]) -> Iterator[Finding]:
    hardware = case.prism.hardware
    address = variables.get("RAY_ADDRESS")
    if address and hardware.ray_address is None:
        yield error(
            f"RAY_ADDRESS={address}: the run would join that Ray instead of starting its own",
            "unset RAY_ADDRESS, or set prism.hardware.ray_address=auto",
        )
    allocator = variables.get("PYTORCH_CUDA_ALLOC_CONF", "").lower()
    if hardware.sleep_mode and "expandable_segments:true" in allocator:
        yield error(
            "vLLM's sleep mode does not support PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
            "unset PYTORCH_CUDA_ALLOC_CONF; verl sets it for the processes that support it",
        )


def check_shared_memory(case: Case) -> Iterator[Finding]:
    """Check /dev/shm: it holds weight buckets (CPU), or NCCL's buffers and loaded batches (GPU)."""
    hardware = case.prism.hardware
    free = shutil.disk_usage(SHARED_MEMORY).free
    per_device = hardware.weight_bucket_mib * 2**20 if hardware.device == "cpu" else GIB
    needed = hardware.devices_per_node * per_device + GIB // 4
    if free < needed:
        yield error(
            f"{SHARED_MEMORY} has {gib(free)} free; the run needs {gib(needed)}",
            "in a container: docker run --shm-size=16g or --ipc=host; else mount a larger tmpfs",
        )
    yield ok(f"{SHARED_MEMORY}: {gib(free)} free")


def check_limits(case: Case) -> Iterator[Finding]:
    """Check the limits on open files and on processes."""
    files, max_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    unlimited = resource.RLIM_INFINITY
    fix = f"ulimit -n {ADVISED_FILES}"
    if max_files != unlimited and max_files < ADVISED_FILES:
        fix += " (ask an administrator)"
    if files != unlimited and files < MIN_FILES:
        yield error(f"at most {files} open files", fix)
    elif files != unlimited and files < ENOUGH_FILES:
        yield warning(f"at most {files} open files", fix)
    if processes != unlimited and processes < MIN_PROCESSES:
        yield error(f"at most {processes} processes and threads", "ulimit -u unlimited")
    yield ok(f"{_limit(files)} open files, {_limit(processes)} processes")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def check_scratch_folder(case: Case) -> Iterator[Finding]:
    """Check that /tmp is writable and has room."""
    if not _is_writable_folder(SCRATCH):
        yield error(
            f"{SCRATCH} is not a writable folder",
            f"mkdir -m 1777 {SCRATCH} (the paths of sockets must be short)",
        )
        return
    free = shutil.disk_usage(SCRATCH).free
    fix = f"free space in {SCRATCH}"
    if free < MIN_SCRATCH:
        yield error(f"{SCRATCH} has {gib(free)} free; Ray needs at least {gib(MIN_SCRATCH)}", fix)
    elif case.on_ray and free < ENOUGH_SCRATCH:
        yield warning(f"{SCRATCH} has {gib(free)} free; Ray spills objects there", fix)
    yield ok(f"{SCRATCH}: {gib(free)} free")


def check_output(case: Case) -> Iterator[Finding]:
    """Check that the output folder is writable, and that its disk holds all checkpoints.

    While a checkpoint is being saved there is one more than `prism.keep_checkpoints`.
    """
    folder = case.prism.output
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not _is_writable_folder(existing):
        yield error(
            f"prism.output={folder}: {existing} is not a writable folder", "set prism.output"
        )
        return
    free = shutil.disk_usage(existing).free
    checkpoint = _checkpoint_size(case)
    needed = checkpoint * (case.prism.keep_checkpoints + 1)
    if free < needed:
        yield error(
            f"{existing} has {gib(free)} free; "
            f"checkpoints of {gib(checkpoint)} each need {gib(needed)}",
            "set prism.output or prism.root to a folder on a larger disk",
        )
    yield ok(f"{gib(free)} free, {gib(needed)} needed")


def _checkpoint_size(case: Case) -> int:
    if case.prism.stage in ONLY_SAMPLE:
        return 0
    policy = 0 if case.prism.stage == "warmup" else case.policy.total
    discriminator = 0 if case.discriminator is None else case.discriminator.total
    return checkpoint_bytes(policy, discriminator, lora=case.prism.lora.rank > 0)


def _is_writable_folder(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)
