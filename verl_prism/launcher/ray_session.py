"""The stage's connection to Ray: a private one on this host, or one that runs on several."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray

from verl_prism.config import Hardware


@contextmanager
def ray_session(hardware: Hardware) -> Iterator[None]:
    """Connect to the Ray at `ray_address`, or start one, for the block.

    What its workers print goes to this process. Does nothing in an outer session.
    """
    if ray.is_initialized():
        yield
        return
    private = hardware.ray_address is None
    ray.init(
        address=hardware.ray_address,
        num_cpus=hardware.ray_cpus if private else None,
        num_gpus=hardware.ray_gpus if private else None,
        include_dashboard=False if private else None,
    )
    try:
        yield
    finally:
        ray.shutdown()
