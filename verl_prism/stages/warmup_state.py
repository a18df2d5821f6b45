"""The state of an unfinished warm-up on disk: parameters, optimizer and schedule, from which it goes on as if never
stopped. The order of the data is a function of the seed and the step, so that the step is all there is to keep of it.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from verl_prism.checkpoints.store import CheckpointStore
from verl_prism.discriminator.ranks import Ranks

SCHEDULE = "schedule.json"


@dataclass(frozen=True)
class TrainingState:
    """What is saved and restored. Each rank writes its part; any number of ranks reads them."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    ranks: Ranks

    def save(self, checkpoints: CheckpointStore, step: int) -> None:
        """As a checkpoint: on disk as a whole, or not there."""
        aside = checkpoints.unfinished(step)
        if self.ranks.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        self.ranks.wait()
        dcp.save(self._tensors(), checkpoint_id=aside, no_dist=self.ranks.alone)
        if self.ranks.rank == 0:
            (aside / SCHEDULE).write_text(json.dumps(self.schedule.state_dict()))
            checkpoints.publish(step)
        self.ranks.wait()

    def restore(self, folder: Path) -> None:
        """From a checkpoint."""
        tensors = self._tensors()
        dcp.load(tensors, checkpoint_id=folder, no_dist=self.ranks.alone)
        set_model_state_dict(self.model, tensors["model"])
        set_optimizer_state_dict(self.model, self.optimizer, tensors["optimizer"])
        self.schedule.load_state_dict(json.loads((folder / SCHEDULE).read_text()))

    def _tensors(self) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
        }
