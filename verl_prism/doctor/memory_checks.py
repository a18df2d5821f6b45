"""Check that models, activations and vLLM fit into a device, and offloaded models into the host."""

from collections.abc import Iterator

import psutil

from verl_prism.config import ONLY_SAMPLE
from verl_prism.doctor.devices import visible_gpus
from verl_prism.doctor.finding import GIB, Case, Finding, error, gib, ok, warning
from verl_prism.doctor.memory_estimate import (
    DeviceMemory,
    Phase,
    host_memory,
    phases,
    replay_memory,
)

H100 = 80 * GIB
TIGHT = 0.9  # share of a device's memory
FEW_SEQUENCES = 4  # with fewer at once, most of vLLM's requests wait


def check_device_memory(case: Case) -> Iterator[Finding]:
    """Yield one finding for each phase of a step."""
    memory, device = device_memory(case)
    for phase in phases(case.prism, case.policy, case.discriminator, memory):
        text = f"{phase.name}: {gib(phase.total)} of {gib(memory)} ({device}): {_parts(phase)}"
        if phase.total > memory:
            yield error(text, phase.fix)
        elif phase.total > TIGHT * memory:
            yield warning(text, phase.fix)
        else:
            yield ok(text)


def device_memory(case: Case) -> tuple[int, str]:
    """Return the memory of one device in bytes, and what the device is."""
    hardware = case.prism.hardware
    if hardware.device == "cpu":
        share = psutil.virtual_memory().total // hardware.devices_per_node
        return share, "this host's share per rank"
    gpus = visible_gpus()
    if not gpus:
        return H100, "an H100; this host has no GPU"
    return min(gpu.memory for gpu in gpus), gpus[0].name


def _parts(phase: Phase) -> str:
    """Format the parts above 1 % of the phase, largest first."""
    parts = sorted(phase.parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {gib(size)}" for name, size in parts if size > 0.01 * phase.total)


def check_vllm_cache(case: Case) -> Iterator[Finding]:
    """Check that vLLM's share of a GPU holds the weights and a cache for enough sequences.

    On CPU the cache does not depend on this share.
    """
    hardware = case.prism.hardware
    if case.prism.stage in ("sft", "dpo"):
        yield ok("this stage does not use vLLM")
        return
    if hardware.device == "cpu":
        yield ok("not checked on a CPU")
        return
    memory, _ = device_memory(case)
    sequences = DeviceMemory(hardware, case.prism.data).cached_sequences(case.policy, memory)
    fix = "raise prism.hardware.gpu_memory_utilization or prism.hardware.tensor_parallel_size"
    if sequences < 1:
        yield error("vLLM's share of the device holds its weights but not one sequence", fix)
    elif sequences < FEW_SEQUENCES:
        yield warning(f"vLLM's cache holds only {sequences:.0f} of the longest sequences", fix)
    yield ok(f"vLLM's cache holds {sequences:.0f} of the longest sequences")


def check_host_memory(case: Case) -> Iterator[Finding]:
    """Check that the host holds offloaded models, those being loaded, and remembered groups."""
    if case.prism.hardware.device == "cpu":
        yield ok("part of device memory")
        return
    if case.prism.stage in ONLY_SAMPLE:
        yield ok("no model is offloaded")
        return
    needed = host_memory(case.prism, case.policy, case.discriminator)
    total = psutil.virtual_memory().total
    contents = "offloaded models and models being loaded"
    fix = "set prism.hardware.offload=false, or use a host with more memory"
    replay = replay_memory(case.prism, case.discriminator)
    if replay:
        contents += f", and at most {gib(replay)} of remembered groups"
        fix = f"lower prism.discriminator.replay_groups, {fix}"
    if needed > total:
        yield error(
            f"{contents} need {gib(needed)} of host memory; this host has {gib(total)}", fix
        )
    yield ok(f"{contents}: {gib(needed)} of {gib(total)}")
