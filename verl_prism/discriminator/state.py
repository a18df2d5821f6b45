"""The state of an unfinished warm-up on disk: parameters, optimizer and schedule, from which it goes on as if never
stopped. The order of the data is a function of the seed and the step, so that the step is all there is to keep of it.
"""

import json
import shutil
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from verl_prism.config import Prism
from verl_prism.discriminator.ranks import Ranks
from verl_prism.report.metrics import METRICS
from verl_prism.stages.resume import PROGRESS, decisive_settings, saved_states, state_folder

ASIDE = "unfinished"


@dataclass(frozen=True)
class TrainingState:
    """What is saved and restored. Each rank writes its part; any number of ranks reads them."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    ranks: Ranks

    def save(self, prism: Prism, step: int) -> None:
        """To `<output>/state/<step>`, in the place of an earlier one, which is there until the new one is whole."""
        folder = state_folder(prism)
        aside = folder / ASIDE
        if self.ranks.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        self.ranks.wait()
        dcp.save(self._tensors(), checkpoint_id=aside, no_dist=self.ranks.alone)
        if self.ranks.rank == 0:
            progress = {"schedule": self.schedule.state_dict(), "settings": decisive_settings(prism)}
            (aside / PROGRESS).write_text(json.dumps(progress, indent=2))
            shutil.copy(prism.output / METRICS, aside)
            earlier = saved_states(folder)
            aside.rename(folder / str(step))
            for state in earlier:
                shutil.rmtree(state)
        self.ranks.wait()

    def restore(self, prism: Prism) -> int:
        """Returns the step that was done."""
        last = saved_states(state_folder(prism))[-1]
        tensors = self._tensors()
        dcp.load(tensors, checkpoint_id=last, no_dist=self.ranks.alone)
        set_model_state_dict(self.model, tensors["model"])
        set_optimizer_state_dict(self.model, self.optimizer, tensors["optimizer"])
        self.schedule.load_state_dict(json.loads((last / PROGRESS).read_text())["schedule"])
        return int(last.name)

    def _tensors(self) -> dict[str, Any]:
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
        }
