"""What the ranks of test_reshard.py run: a small sharded model, saved and loaded as verl does."""

import random
from pathlib import Path

import numpy as np
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from verl_prism.discriminator import process_group
from verl_prism.sharding import shard_dimension

ROWS = (5, 3, 1)  # of each layer's output: none divides among two or four ranks
EXPERTS = (3, 6, 8)  # divided along the second dimension on two ranks, the third on four


class Experts(torch.nn.Module):
    """The sum of several linear layers whose weights are one parameter."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(EXPERTS))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs.repeat(1, 2) @ self.weight.transpose(1, 2)).sum(0)[:, :4]


class Training:
    """A sharded model with AdamW and a schedule."""

    def __init__(self, world_size: int):
        torch.manual_seed(0)
        sizes = zip((4, *ROWS), ROWS, strict=False)
        layers = [torch.nn.Linear(inputs, outputs) for inputs, outputs in sizes]
        self.model = torch.nn.Sequential(Experts(), *layers)
        fully_shard(
            self.model,
            mesh=init_device_mesh("cpu", (world_size,)),
            shard_placement_fn=lambda p: Shard(shard_dimension(p.shape, world_size)),
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.5)

    def step(self) -> None:
        self.model(torch.linspace(-1, 1, 12).view(3, 4)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()

    def parameters(self) -> dict[str, list]:
        state = self.model.state_dict()
        return {name: tensor.full_tensor().tolist() for name, tensor in state.items()}

    def save(self, folder: Path, rank: int, world_size: int) -> None:
        name = f"world_size_{world_size}_rank_{rank}.pt"
        random_states = {
            "cpu": torch.get_rng_state(),
            "numpy": np.random.get_state(),
            "random": random.getstate(),
        }
        extra = {"lr_scheduler": self.schedule.state_dict(), "rng": random_states}
        torch.save(self.model.state_dict(), folder / f"model_{name}")
        torch.save(self.optimizer.state_dict(), folder / f"optim_{name}")
        torch.save(extra, folder / f"extra_state_{name}")

    def load(self, folder: Path, rank: int, world_size: int) -> None:
        name = f"world_size_{world_size}_rank_{rank}.pt"
        self.model.load_state_dict(torch.load(folder / f"model_{name}", weights_only=False))
        self.optimizer.load_state_dict(torch.load(folder / f"optim_{name}", weights_only=False))
        extra = torch.load(folder / f"extra_state_{name}", weights_only=False)
        self.schedule.load_state_dict(extra["lr_scheduler"])


@record
def save_after_two_steps(folder: Path) -> None:
    """Save the state of one rank or several."""
    with process_group("cpu") as ranks:
        training = Training(ranks.world_size)
        training.step()
        training.step()
        training.save(folder, ranks.rank, ranks.world_size)


@record
def continue_from(folder: Path) -> tuple[dict[str, list], dict[str, list], float]:
    """Return the parameters as loaded, those after another step, and the learning rate."""
    with process_group("cpu") as ranks:
        training = Training(ranks.world_size)
        training.load(folder, ranks.rank, ranks.world_size)
        loaded = training.parameters()
        training.step()
        moments = training.optimizer.state_dict()["state"][0]["exp_avg"]
        assert isinstance(moments, DTensor)
        return loaded, training.parameters(), training.schedule.get_last_lr()[0]
