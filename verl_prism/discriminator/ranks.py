"""The processes that share the discriminator: sums over them, a share of the groups for each, sharded parameters."""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from verl_prism.discriminator.batch import Group
from verl_prism.discriminator.model import PrismDiscriminatorForTokenClassification as Discriminator
from verl_prism.errors import UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """The ranks that share each mini-batch; without a process group, one."""

    device: str | int = "cpu"
    group: dist.ProcessGroup | None = None  # None: all

    @property
    def alone(self) -> bool:
        return not dist.is_initialized()

    @property
    def size(self) -> int:
        return 1 if self.alone else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return 0 if self.alone else dist.get_rank(self.group)

    def sum(self, values: Sequence[float]) -> list[float]:
        return self._reduce(values, dist.ReduceOp.SUM)

    def max(self, value: float) -> float:
        return self._reduce([value], dist.ReduceOp.MAX)[0]

    def wait(self) -> None:
        """For all."""
        self.sum([0.0])

    def _reduce(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.alone:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=operation, group=self.group)
        return tensor.tolist()

    def share(self, groups: Sequence[Group]) -> list[Group]:
        """This rank's groups. Where there are too few for all, it gets one without a valid response."""
        mine = list(groups[self.rank :: self.size])
        return mine or [Group(groups[0].prompt, groups[0].teacher, [None])]


def shard(model: Discriminator, ranks: Ranks, dtype: torch.dtype) -> None:
    """FSDP2: layer by layer, computed in `dtype`; what belongs to no layer, the heads too, in the dtype it has."""
    mesh = init_device_mesh(torch.device(ranks.device).type, (ranks.size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in (*model.model.language_model.layers, *model.model.visual.blocks):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)


@contextmanager
def gradient_sync(model: Discriminator, last: bool) -> Iterator[None]:
    """Sharded gradients are summed over ranks once, after the last micro-batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    yield


def on_ranks(count: int, function: Callable[..., Result], *arguments: object) -> Result:
    """`function(*arguments)` in so many processes of this host, as torchrun starts them; in this one if count is 1.

    function: at a module's top level and decorated with torch's `record`, so that its errors come back.
    Returns what rank 0 returned. Raises UserError where a rank did.
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
    except ChildFailedError as failure:
        _, first = failure.get_first_failure()
        error: Any = first.message  # a dict where `record` has caught an exception
        kind, _, text = (
            error["message"].partition(": ") if isinstance(error, dict) else (None, None, None)
        )
        if kind == UserError.__name__:
            raise UserError(text) from failure
        raise


@contextmanager
def process_group(device: str) -> Iterator[Ranks]:
    """The ranks that `on_ranks` started, connected, each with its device (`cpu` or one of the host's `cuda`)."""
    if "WORLD_SIZE" not in os.environ:
        yield Ranks(device)
        return
    local: str | int = device
    if device == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(local)
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        yield Ranks(local)
    finally:
        dist.destroy_process_group()
