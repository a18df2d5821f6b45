"""The host that the doctor runs on: packages, environment, limits, room."""

import importlib.metadata
import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement

from verl_prism import plugin
from verl_prism.doctor.finding import Case, Finding, fault, ok, warning
from verl_prism.doctor.memory import GIB, checkpoint_bytes
from verl_prism.doctor.models import parameters

SCRATCH = Path("/tmp")  # of Ray, and of verl's sockets
SHARED_MEMORY = Path("/dev/shm")
FILES, FILES_WANTED = 4096, 16384  # Ray's daemons open thousands; it advises 65,536
PROCESSES = 8192  # threads count


def versions(case: Case) -> Iterator[Finding]:
    """Installed packages against verl_prism's own requirements, with those for the device."""
    extra = "cpu" if case.prism.hardware.device == "cpu" else "gpu"
    cure = f"install the locked set: requirements/{extra}.txt says how"
    wanted = [Requirement(text) for text in importlib.metadata.requires("verl_prism") or []]
    wanted = [
        each for each in wanted if each.marker is None or each.marker.evaluate({"extra": extra})
    ]
    found = {each.name: _version(each.name) for each in wanted}
    for each in wanted:
        have = found[each.name]
        if have is None:
            yield fault(
                f"{each.name} is not installed; {each.name}{each.specifier} is needed", cure
            )
        elif not each.specifier.contains(have, prereleases=True):
            yield fault(f"{each.name} is {have}, not {each.specifier}", cure)
    yield ok(
        ", ".join(
            f"{name} {found[name]}"
            for name in ("verl", "torch", "transformers", "ray")
            if found[name]
        )
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def verl_plugin(case: Case) -> Iterator[Finding]:
    plugin.assert_loaded()
    yield ok("verl loads verl_prism")


def environment(case: Case, variables: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Variables that would lead the run astray. They win over what the launcher sets."""
    hardware, cpu = case.prism.hardware, case.prism.hardware.device == "cpu"
    address = variables.get("RAY_ADDRESS")
    if case.rl and address and hardware.ray_address is None:
        yield fault(
            f"RAY_ADDRESS={address}: the run would join that Ray instead of starting its own",
            "unset RAY_ADDRESS, or say prism.hardware.ray_address=auto",
        )
    for name in ("RANK", "WORLD_SIZE"):
        if not case.rl and name in variables:
            yield fault(f"{name}={variables[name]} is left from another launcher", f"unset {name}")
    for name, right in {"VERL_PLATFORM": "cpu", "VERL_ENGINE_DEVICE": "cuda"}.items():
        allowed = (
            ("", right) if cpu else ("", "cuda") if name == "VERL_ENGINE_DEVICE" else ("", "nvidia")
        )
        if variables.get(name, "") not in allowed:
            yield fault(
                f"{name}={variables[name]} does not go with hardware of {hardware.device}",
                f"unset {name}",
            )
    if not cpu and variables.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        yield fault("CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES")
    if variables.get("HF_HUB_OFFLINE", "1").lower() in ("0", "false", "no", "off", ""):
        yield warning(
            f"HF_HUB_OFFLINE={variables['HF_HUB_OFFLINE']}: libraries may ask the hub about models that are folders",
            "unset HF_HUB_OFFLINE; the launcher sets it to 1",
        )
    allocator = variables.get("PYTORCH_CUDA_ALLOC_CONF", "")
    if case.rl and hardware.sleep_mode and "expandable_segments:true" in allocator.lower():
        yield fault(
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: vLLM cannot sleep with it",
            "unset PYTORCH_CUDA_ALLOC_CONF; verl sets it where it may be set",
        )
    yield ok("no variable that leads astray")


def shared_memory(case: Case) -> Iterator[Finding]:
    """Weights on their way on a CPU host; NCCL's rings and data workers' batches otherwise."""
    hardware, room = case.prism.hardware, shutil.disk_usage(SHARED_MEMORY)
    each = 2**20 * hardware.weight_bucket_mib if hardware.device == "cpu" else GIB
    needed = hardware.devices_per_node * each + GIB // 4
    if room.free < needed:
        yield fault(
            f"{SHARED_MEMORY} has {gib(room.free)} free; {gib(needed)} are needed",
            "a container gets it by docker run --shm-size=16g or --ipc=host; else mount a larger tmpfs there",
        )
    yield ok(f"{SHARED_MEMORY}: {gib(room.free)} free")


def limits(case: Case) -> Iterator[Finding]:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    cure = "ulimit -n 65536" + (
        "" if most == resource.RLIM_INFINITY or most >= 65536 else " (ask an administrator)"
    )
    if 0 <= files < FILES:
        yield fault(f"at most {files} open files", cure)
    elif 0 <= files < FILES_WANTED:
        yield warning(f"at most {files} open files", cure)
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if 0 <= processes < PROCESSES:
        yield fault(f"at most {processes} processes and threads", "ulimit -u unlimited")
    yield ok(f"{_count(files)} open files, {_count(processes)} processes")


def _count(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def scratch(case: Case) -> Iterator[Finding]:
    if not (SCRATCH.is_dir() and os.access(SCRATCH, os.W_OK | os.X_OK)):
        yield fault(
            f"{SCRATCH} is no folder that can be written",
            f"mkdir -m 1777 {SCRATCH}; sockets need a short path",
        )
        return
    free = shutil.disk_usage(SCRATCH).free
    if free < GIB:
        yield fault(
            f"{SCRATCH} has {gib(free)} free; Ray needs 1 GiB at the least",
            f"make room in {SCRATCH}",
        )
    elif case.rl and free < 10 * GIB:
        yield warning(
            f"{SCRATCH} has {gib(free)} free; Ray spills there what its memory does not hold",
            f"make room in {SCRATCH}",
        )
    yield ok(f"{SCRATCH}: {gib(free)} free")


def output(case: Case) -> Iterator[Finding]:
    """The run's folder can be written, and the disk holds its checkpoints: the kept ones and the one being written."""
    folder = case.prism.output
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield fault(
            f"prism.output={folder}: {existing} is not a folder that can be written",
            "set prism.output",
        )
        return
    free = shutil.disk_usage(existing).free
    each = (
        0 if case.prism.stage == "eval" else checkpoint_bytes(case.prism, *parameters(case.prism))
    )
    needed = each * (case.prism.keep_checkpoints + 1)
    if free < needed:
        yield fault(
            f"{existing} has {gib(free)} free; checkpoints of {gib(each)} each need {gib(needed)}",
            "set prism.output or prism.root to a larger disk",
        )
    yield ok(f"{gib(free)} free, {gib(needed)} needed")


def gib(size: float) -> str:
    return f"{size / GIB:.3g} GiB"
