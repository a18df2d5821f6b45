"""The processes that share the discriminator: collectives, sharding, and how each one computes."""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.distributed.tensor import Shard

from verl_prism.discriminator.model import PrismDiscriminatorForTokenClassification as Discriminator
from verl_prism.errors import UserError
from verl_prism.sharding import shard_dimension

Item = TypeVar("Item")
Result = TypeVar("Result")

# How long a rank waits for the others, as in verl's SFT trainer. It must exceed the longest save,
# in which one rank writes while the others wait; torch's default is 10 minutes. A run that hangs is
# ended much earlier, by prism.stall_seconds.
COLLECTIVE_TIMEOUT = timedelta(hours=10)


@dataclass(frozen=True)
class Ranks:
    """The ranks that share each mini-batch. Without a process group there is one."""

    device: str | int = "cpu"
    group: dist.ProcessGroup | None = None  # None: all ranks

    @property
    def alone(self) -> bool:
        """Whether there is no process group."""
        return not dist.is_initialized()

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return 1 if self.alone else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Index of this process among the ranks."""
        return 0 if self.alone else dist.get_rank(self.group)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum each value over all ranks."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, value: float) -> float:
        """Return the largest value of all ranks."""
        return self._reduce([value], dist.ReduceOp.MAX)[0]

    def share(self, items: Sequence[Item], function: Callable[[Item], Result]) -> list[Result]:
        """Return `function` of each item; each rank computes a share, and all get all results."""
        mine = [function(item) for item in items[self.rank :: self.world_size]]
        if self.alone:
            return mine
        shares: list[Any] = [None] * self.world_size
        dist.all_gather_object(shares, mine, group=self.group)
        results: list[Any] = [None] * len(items)
        for rank, share in enumerate(shares):
            results[rank :: self.world_size] = share
        return results

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.sum([0.0])

    def _reduce(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.alone:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=operation, group=self.group)
        return tensor.tolist()


def shard(model: Discriminator, ranks: Ranks, dtype: torch.dtype) -> None:
    """Shard a float32 model over the ranks with FSDP2; each pass computes with copies in `dtype`.

    One rank is sharded too: the copies give the experts' grouped matrix products their dtype, which
    autocast would not. Gradients are summed in float32. The root has the same policy as the layers,
    so that inputs of layers have `dtype` already and need no cast: torch 2.11 does not repeat a
    cast when gradient checkpointing recomputes a layer. Experts are divided evenly, see
    `shard_dimension`.
    """
    device = torch.device(ranks.device).type
    # A checkpoint holds the mesh of its tensors. verl's meshes also have this name.
    mesh = init_device_mesh(device, (ranks.world_size,), mesh_dim_names=("fsdp",))
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )

    def placement(parameter: torch.nn.Parameter) -> Shard:
        return Shard(shard_dimension(parameter.shape, ranks.world_size))

    for module in (*model.model.language_model.layers, *model.model.visual.blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=policy, shard_placement_fn=placement)


def on_ranks(count: int, function: Callable[..., Result], *arguments: object) -> Result:
    """Call `function(*arguments)` in `count` processes of this host, started as torchrun does.

    If `count` is 1, the call is made in this process. The function must be at the top level of a
    module and decorated with torch's `record`, so that its errors come back.

    Returns what rank 0 returned.

    Raises:
        UserError: a rank raised one.
    """
    if count == 1:
        return function(*arguments)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        return elastic_launch(config, function)(*arguments)[0]
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        text = _user_error(failure)
        if text is None:
            raise
        raise UserError(text) from error


def _user_error(failure: ProcessFailure) -> str | None:
    """Return the message of a rank's UserError, or None if it failed otherwise."""
    recorded = failure.message
    if not isinstance(recorded, dict):  # a string if `record` caught no exception
        return None
    kind, _, text = recorded["message"].partition(": ")
    return text if kind == UserError.__name__ else None


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """Connect the ranks that `on_ranks` started, or make a group of only this process.

    Args:
        device: `cpu`, or `cuda` for one of the host's GPUs per rank.
    """
    local_device: str | int = device
    if device == "cuda":
        local_device = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local_device)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield Ranks(local_device)
    finally:
        dist.destroy_process_group()
