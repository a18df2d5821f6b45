"""The state of an unfinished warm-up on disk: parameters, optimizer and learning-rate schedule.

The order of the data is a function of the seed and the step, so no more is needed to resume.
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

from verl_prism.discriminator.ranks import Ranks

SCHEDULE = "schedule.json"


@dataclass(frozen=True)
class TrainingState:
    """What is saved and restored. Each rank writes its part; any number of ranks can read them."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    ranks: Ranks

    def save(self, folder: Path) -> None:
        """Replace `folder` by the state. Every rank must call this."""
        if self.ranks.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        self.ranks.wait()
        dcp.save(self._tensors(), checkpoint_id=folder, no_dist=self.ranks.alone)
        if self.ranks.rank == 0:
            (folder / SCHEDULE).write_text(json.dumps(self.schedule.state_dict()))

    def restore(self, folder: Path) -> None:
        """Load the state from a checkpoint's folder. Every rank must call this."""
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
