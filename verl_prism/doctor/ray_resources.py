"""Check that Ray has the resources that a run requests. If not, verl silently waits forever."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from verl_prism.config import ON_RAY, Prism
from verl_prism.doctor.devices import last_line, visible_gpus
from verl_prism.doctor.finding import Case, Finding, error, ok

CPUS_PER_DEVICE = 3  # of a bundle in verl's resource pools
CPUS_PER_RANK = 1  # of a vLLM engine or a rank in the other stages
QUERY_SECONDS = 60
# Print the free resources of each node. Ray ends the process if it cannot join, so it runs apart.
QUERY = """
import json, sys, ray
from ray._private.state import available_resources_per_node
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(json.dumps(list(available_resources_per_node().values())))
"""

Resources = dict[str, Any]


class RayUnavailable(Exception):
    """A running Ray could not be queried."""


def check_ray(case: Case) -> Iterator[Finding]:
    """Check the Ray that the run starts or joins."""
    if not case.uses_ray:
        yield ok("not used")
    elif case.prism.hardware.ray_address is None:
        yield from _check_own_ray(case.prism)
    else:
        yield from _check_running_ray(case.prism, case.prism.hardware.ray_address)


def cpus_needed(prism: Prism) -> int:
    """Return the logical CPUs that a run requests.

    For verl's trainer these are a bundle per device, TransferQueue's storage and controller, and
    the task runner.
    """
    if prism.stage not in ON_RAY:
        return CPUS_PER_RANK * prism.devices
    return CPUS_PER_DEVICE * prism.devices + prism.hardware.storage_units + 2


def _check_own_ray(prism: Prism) -> Iterator[Finding]:
    hardware = prism.hardware
    if hardware.nodes > 1:
        yield error(
            f"prism.hardware.nodes={hardware.nodes}, but the Ray that a run starts has one node",
            "start the run with python -m verl_prism.cluster, "
            "or start Ray on every node and set prism.hardware.ray_address",
        )
        return
    gpus = hardware.ray_gpus or len(visible_gpus())
    cpus = hardware.ray_cpus or len(os.sched_getaffinity(0))
    needed_cpus = cpus_needed(prism)
    if gpus < prism.devices:
        yield error(
            f"the run requests {prism.devices} devices from Ray, which would have {gpus}",
            "lower prism.hardware.devices_per_node, or raise prism.hardware.ray_gpus",
        )
    if cpus < needed_cpus:
        yield error(
            f"the run requests {needed_cpus} logical CPUs from Ray, which would have {cpus}",
            f"set prism.hardware.ray_cpus={needed_cpus}, or lower prism.hardware.storage_units",
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # raises OSError if no port is free
    yield ok(
        f"started by the run: {prism.devices} of {gpus} devices, "
        f"{needed_cpus} of {cpus} logical CPUs"
    )


def _check_running_ray(prism: Prism, address: str) -> Iterator[Finding]:
    try:
        nodes = free_resources(address)
    except RayUnavailable as problem:
        yield error(
            str(problem), "start Ray (ray start --head), or correct prism.hardware.ray_address"
        )
        return
    per_node = prism.hardware.devices_per_node
    per_device = CPUS_PER_DEVICE if prism.stage in ON_RAY else CPUS_PER_RANK
    node_cpus = per_device * per_node
    usable = [node for node in nodes if _has(node, per_node, node_cpus)]
    if len(usable) < prism.hardware.nodes:
        yield error(
            f"{len(usable)} of Ray's nodes have {per_node} devices and {node_cpus} logical CPUs "
            f"free; the run needs {prism.hardware.nodes}",
            "set prism.hardware.devices_per_node and prism.hardware.nodes to what is free",
        )
        return
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    cpus = int(sum(node.get("CPU", 0) for node in nodes))
    needed_cpus = cpus_needed(prism)
    if gpus < prism.devices or cpus < needed_cpus:
        yield error(
            f"the run requests {prism.devices} devices and {needed_cpus} logical CPUs from Ray; "
            f"{gpus} and {cpus} are free",
            "add nodes, or start Ray with a higher --num-cpus",
        )
        return
    yield ok(f"{address}: {len(nodes)} nodes, {gpus} devices and {cpus} logical CPUs free")


def _has(node: Resources, gpus: int, cpus: int) -> bool:
    return node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= cpus


def free_resources(address: str) -> list[Resources]:
    """Return the free resources of each node of the Ray at `address`.

    Raises:
        RayUnavailable: nothing answers, or Ray refuses the connection.
    """
    if not _listens(address):
        raise RayUnavailable(f"nothing answers at prism.hardware.ray_address={address}")
    command = [sys.executable, "-c", QUERY, address]
    try:
        query = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_SECONDS)
    except subprocess.TimeoutExpired:
        raise RayUnavailable(f"Ray at {address} did not answer within {QUERY_SECONDS} s") from None
    if query.returncode:
        raise RayUnavailable(f"cannot join Ray at {address}: {last_line(query.stderr)}")
    return json.loads(query.stdout.splitlines()[-1])


def _listens(address: str) -> bool:
    """Try a connection first, because Ray itself retries for minutes.

    A name such as "auto" is left to Ray.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return True
    host = host.rpartition("/")[2] or "127.0.0.1"
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except OSError:
        return False
