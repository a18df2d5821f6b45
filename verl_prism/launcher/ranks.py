"""The ranks of torch that train together on fixed texts, one per device of all nodes."""

import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from verl_prism.config import Hardware
from verl_prism.discriminator import on_ranks
from verl_prism.errors import UserError
from verl_prism.launcher.ray_session import ray_session

Result = TypeVar("Result")


def on_all_devices(
    hardware: Hardware, function: Callable[..., Result], *arguments: object
) -> Result:
    """Call `function(*arguments)` in one process per device, with torchrun's variables.

    The only device of a run: in this process. The devices of one node: in processes that torch
    starts. Several nodes: in actors of the Ray that runs on them. The function must be at the top
    level of a module and decorated with torch's `record`.

    Returns what rank 0 returned.

    Raises:
        UserError: a rank raised one.
    """
    if hardware.nodes == 1:
        return on_ranks(hardware.devices_per_node, function, *arguments)
    with ray_session(hardware):
        return _on_nodes(hardware, function, *arguments)


class RankDiedError(RuntimeError):
    """The process of a rank ended while it was training."""


class RankActor:
    """One rank. Ray shows it a single device."""

    def address(self) -> tuple[str, int]:
        """Return the address of this node and a free port, where the ranks can meet."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def call(
        self,
        variables: Mapping[str, str],
        function: Callable[..., Result],
        arguments: tuple[object, ...],
    ) -> Result:
        """Call the function with these environment variables."""
        os.environ.update(variables)
        return function(*arguments)


def _on_nodes(hardware: Hardware, function: Callable[..., Result], *arguments: object) -> Result:
    per_node = hardware.devices_per_node
    world_size = per_node * hardware.nodes
    group = placement_group(
        [{"GPU": per_node, "CPU": per_node}] * hardware.nodes, strategy="STRICT_SPREAD"
    )
    ray.get(group.ready())
    actors = [_start_actor(group, rank // per_node) for rank in range(world_size)]
    try:
        host, port = ray.get(actors[0].address.remote())
        results = []
        for rank, actor in enumerate(actors):
            variables = {
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": host,
                "MASTER_PORT": str(port),
            }
            results.append(actor.call.remote(variables, function, arguments))
        return _wait_for(results)
    finally:
        for actor in actors:
            ray.kill(actor)
        remove_placement_group(group)


def _start_actor(group: PlacementGroup, node: int) -> Any:
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node)
    return (
        ray.remote(RankActor).options(num_gpus=1, num_cpus=1, scheduling_strategy=strategy).remote()
    )


def _wait_for(results: list[ray.ObjectRef]) -> Any:
    """Return the first result when all are there. Raise the first failure as soon as it happens.

    Raises:
        RankDiedError: the process of a rank ended.
        UserError: a rank raised one.
    """
    waiting = results
    while waiting:
        (done, *_), waiting = ray.wait(waiting, num_returns=1)
        try:
            ray.get(done)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except RayError as error:
            rank = results.index(done)
            raise RankDiedError(
                f"training rank {rank} of {len(results)} died. Ray says: {error}"
            ) from error
    return ray.get(results[0])
