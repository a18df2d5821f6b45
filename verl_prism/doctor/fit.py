"""Whether models, activations and vLLM fit into a device, and idle models into the host."""

from collections.abc import Iterator

import psutil

from verl_prism.doctor.devices import visible_gpus
from verl_prism.doctor.finding import Case, Finding, fault, ok, warning
from verl_prism.doctor.host import gib
from verl_prism.doctor.memory import GIB, Moment, cached_sequences, host_memory, moments
from verl_prism.doctor.models import sizes

H100 = 80 * GIB  # where there is no GPU to ask
TIGHT = 0.9
FEW = 4  # sequences at once: vLLM would mostly wait


def device_memory(case: Case) -> tuple[int, str]:
    """Bytes, and whose."""
    hardware = case.prism.hardware
    if hardware.device == "cpu":
        return (
            psutil.virtual_memory().total // hardware.devices_per_node,
            "this host's share for a rank",
        )
    found = visible_gpus()
    return (
        (min(gpu.memory for gpu in found), found[0].name)
        if found
        else (H100, "an H100, as there is none here")
    )


def device_fits(case: Case) -> Iterator[Finding]:
    memory, whose = device_memory(case)
    for moment in moments(case.prism, *sizes(case.prism), memory):
        text = f"{moment.name}: {gib(moment.total)} of {gib(memory)} ({whose}): {_parts(moment)}"
        if moment.total > memory:
            yield fault(text, moment.lower)
        elif moment.total > TIGHT * memory:
            yield warning(text, moment.lower)
        else:
            yield ok(text)


def _parts(moment: Moment) -> str:
    """The larger ones, largest first."""
    parts = sorted(moment.parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {gib(size)}" for name, size in parts if size > 0.01 * moment.total)


def cache_fits(case: Case) -> Iterator[Finding]:
    """vLLM's share of a GPU holds the weights and a cache for one sequence; on a CPU the cache is apart."""
    prism = case.prism
    if prism.hardware.device == "cpu" or prism.stage == "sft":
        yield ok("not on a GPU")
        return
    sequences = cached_sequences(prism, sizes(prism)[0], device_memory(case)[0])
    cure = "raise prism.hardware.gpu_memory_utilization or prism.hardware.tensor_parallel_size"
    if sequences < 1:
        yield fault(
            "vLLM's share of the device has no room for one sequence beside the weights", cure
        )
    elif sequences < FEW:
        yield warning(f"vLLM's cache holds {sequences:.0f} of the longest sequences at once", cure)
    yield ok(f"room for {sequences:.0f} of the longest sequences at once")


def host_fits(case: Case) -> Iterator[Finding]:
    needed, has = host_memory(case.prism, *sizes(case.prism)), psutil.virtual_memory().total
    if case.prism.hardware.device == "cpu" or case.prism.stage == "eval":
        yield ok("counted above" if case.prism.hardware.device == "cpu" else "no idle model")
        return
    if needed > has:
        yield fault(
            f"idle models and those being loaded take {gib(needed)} of the host's memory; it has {gib(has)}",
            "set prism.hardware.offload=false, or take a host with more memory",
        )
    yield ok(f"idle models and those being loaded: {gib(needed)} of {gib(has)}")
