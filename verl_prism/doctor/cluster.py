"""Whether Ray has what the run will ask it for. Where it has not, verl waits for ever and says nothing."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

from verl_prism.doctor.devices import visible_gpus
from verl_prism.doctor.finding import Case, Finding, fault, ok

CPUS_PER_DEVICE = 3  # of a bundle in verl's resource pools
ASK_SECONDS = 60
# what is free on each node; an own process, as Ray ends the one that it cannot serve
ASK = """
import json, sys, ray
from ray._private.state import available_resources_per_node
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps(list(available_resources_per_node().values())))
"""


def cluster(case: Case) -> Iterator[Finding]:
    if not case.rl:
        yield ok("not used")
        return
    yield from (_own(case) if case.prism.hardware.ray_address is None else _existing(case))


def cpus_demanded(case: Case) -> int:
    """Logical ones: a bundle for each device, TransferQueue's storage and controller, one to start the others with."""
    return CPUS_PER_DEVICE * case.prism.devices + case.prism.hardware.storage_units + 2


def _own(case: Case) -> Iterator[Finding]:
    hardware, gpus, cpus = case.prism.hardware, case.prism.devices, cpus_demanded(case)
    has_gpus = hardware.ray_gpus if hardware.ray_gpus is not None else len(visible_gpus())
    has_cpus = hardware.ray_cpus if hardware.ray_cpus is not None else len(os.sched_getaffinity(0))
    if hardware.nodes > 1:
        yield fault(
            f"prism.hardware.nodes={hardware.nodes}, but a Ray of its own has one node",
            "start Ray on every node and set prism.hardware.ray_address (examples/slurm does)",
        )
        return
    if has_gpus < gpus:
        yield fault(
            f"the run asks Ray for {gpus} devices, it would have {has_gpus}",
            "lower prism.hardware.devices_per_node, or set prism.hardware.ray_gpus",
        )
    if has_cpus < cpus:
        yield fault(
            f"the run asks Ray for {cpus} logical CPUs, it would have {has_cpus}",
            f"set prism.hardware.ray_cpus={cpus}, or fewer prism.hardware.storage_units",
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # OSError where no port is free
    yield ok(f"its own: {gpus} of {has_gpus} devices, {cpus} of {has_cpus} logical CPUs")


def _existing(case: Case) -> Iterator[Finding]:
    prism, address = case.prism, str(case.prism.hardware.ray_address)
    cure = "start it (ray start --head), or set prism.hardware.ray_address"
    if not _answers(address):
        yield fault(f"nothing answers at prism.hardware.ray_address={address}", cure)
        return
    try:
        command = [sys.executable, "-c", ASK, address]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS)
    except subprocess.TimeoutExpired:
        yield fault(f"no answer from Ray at {address} within {ASK_SECONDS} s", cure)
        return
    if asked.returncode:
        said = next(
            (line for line in reversed(asked.stderr.splitlines()) if line.strip()), "no message"
        )
        yield fault(f"Ray at {address} cannot be joined: {said}", cure)
        return
    nodes = json.loads(asked.stdout.splitlines()[-1])
    each = prism.hardware.devices_per_node
    able = [
        node
        for node in nodes
        if node.get("GPU", 0) >= each and node.get("CPU", 0) >= CPUS_PER_DEVICE * each
    ]
    gpus, cpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("GPU", "CPU"))
    if len(able) < prism.hardware.nodes:
        yield fault(
            f"{len(able)} of Ray's nodes have {each} devices and {CPUS_PER_DEVICE * each} logical CPUs free; "
            f"{prism.hardware.nodes} are wanted",
            "set prism.hardware.devices_per_node and .nodes to what there is",
        )
    elif gpus < case.prism.devices or cpus < cpus_demanded(case):
        yield fault(
            f"the run asks Ray for {case.prism.devices} devices and {cpus_demanded(case)} logical CPUs; "
            f"{gpus} and {cpus} are free",
            "add nodes, or start Ray with more --num-cpus",
        )
    else:
        yield ok(f"{address}: {len(nodes)} nodes, {gpus} devices and {cpus} logical CPUs free")


def _answers(address: str) -> bool:
    """Asked here, as Ray itself would try for minutes. Names such as "auto" are Ray's to resolve."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return True
    try:
        with socket.create_connection(
            (host.rpartition("/")[2] or "127.0.0.1", int(port)), timeout=5
        ):
            return True
    except OSError:
        return False
