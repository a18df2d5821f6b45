"""The engines that sample a policy together: one in this process, or one per group of devices."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from verl_prism.config import Hardware
from verl_prism.errors import UserError
from verl_prism.rollout.engine import PolicyEngine
from verl_prism.rollout.sampling import Finished, NumberedRow, SamplingJob


class EngineDiedError(RuntimeError):
    """A vLLM engine ended while it was sampling."""


class Engines(Protocol):
    """Engines that work at the same time. Each has at most one order at a time."""

    count: int

    def order(self, engine: int, new: Sequence[NumberedRow], keep: int) -> None:
        """Let an engine add rows, and work until at most `keep` of its rows are unfinished."""

    def report(self) -> tuple[int, list[Finished]]:
        """Wait for any engine to fulfill its order; return its number and the finished rows."""


class LocalEngine:
    """One engine in this process."""

    count = 1

    def __init__(self, engine: PolicyEngine) -> None:
        self._engine = engine
        self._order: tuple[Sequence[NumberedRow], int] = ((), 0)

    def order(self, engine: int, new: Sequence[NumberedRow], keep: int) -> None:
        """Keep the order; the engine works in `report`."""
        self._order = (new, keep)

    def report(self) -> tuple[int, list[Finished]]:
        """Let the engine work."""
        return 0, self._engine.advance(*self._order)


class RayEngines:
    """Actors of a Ray that is already connected."""

    def __init__(self, actors: Sequence[Any], policy: Path) -> None:
        self.count = len(actors)
        self._actors = actors
        self._policy = policy
        self._orders: dict[ray.ObjectRef, int] = {}

    def wait_until_ready(self) -> None:
        """Wait until vLLM has started in all of them."""
        self._orders = {actor.ready.remote(): engine for engine, actor in enumerate(self._actors)}
        while self._orders:
            self.report()

    def order(self, engine: int, new: Sequence[NumberedRow], keep: int) -> None:
        """Send the order."""
        self._orders[self._actors[engine].advance.remote(new, keep)] = engine

    def report(self) -> tuple[int, Any]:
        """Wait for the first answer.

        Raises:
            EngineDiedError: the engine's process ended.
            UserError: the engine found a mistake in its input.
        """
        (done, *_), _ = ray.wait(list(self._orders), num_returns=1)
        engine = self._orders.pop(done)
        try:
            return engine, ray.get(done)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except RayError as error:
            raise EngineDiedError(
                f"vLLM engine {engine + 1} of {self.count}, which sampled {self._policy}, died. "
                "What was sampled before is kept, and prism.resume=true continues from there. "
                f"Ray says: {error}"
            ) from error

    def close(self) -> None:
        """Free the devices."""
        ray.get([actor.close.remote() for actor in self._actors])
        self.kill()

    def kill(self) -> None:
        """End the engines' processes."""
        for actor in self._actors:
            ray.kill(actor)


def engine_count(hardware: Hardware) -> int:
    """Return the number of engines: one per `tensor_parallel_size` devices of a node.

    Raises:
        UserError: the devices of a node do not divide into engines.
    """
    engines, rest = divmod(hardware.devices_per_node, hardware.tensor_parallel_size)
    if rest:
        raise UserError(
            f"prism.hardware.devices_per_node={hardware.devices_per_node} is not a multiple of "
            f"tensor_parallel_size={hardware.tensor_parallel_size}; all devices of a vLLM engine "
            "must be on one node"
        )
    return engines * hardware.nodes


@contextmanager
def open_engines(job: SamplingJob) -> Iterator[Engines]:
    """Start the engines, and end them with the block.

    A single engine runs in this process, which saves the start of Ray. Several engines are Ray
    actors; the caller has connected to Ray.
    """
    if engine_count(job.hardware) == 1:
        engine = PolicyEngine(job)
        yield LocalEngine(engine)
        engine.close()
        return
    engines = _start_actors(job)
    try:
        engines.wait_until_ready()
        yield engines
        engines.close()
    except BaseException:
        engines.kill()
        raise


def _start_actors(job: SamplingJob) -> RayEngines:
    count = engine_count(job.hardware)
    devices = count * job.hardware.tensor_parallel_size
    available = int(ray.cluster_resources().get("GPU", 0))
    if available < devices:
        raise UserError(
            f"Ray has {available} devices, and the run needs {devices} (prism.hardware.nodes x "
            "devices_per_node)"
        )
    # An actor's devices are always on one node.
    remote = ray.remote(PolicyEngine).options(
        num_gpus=job.hardware.tensor_parallel_size, num_cpus=1, scheduling_strategy="SPREAD"
    )
    actors = [remote.remote(job) for _ in range(count)]
    return RayEngines(actors, job.policy)
