"""verl's language-model engine with the vision tower left as it is: verl's FSDP engines have no setting for it."""

import torch
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngineWithLMHead

VENDOR = "prism_frozen_vision"  # by VERL_ENGINE_VENDOR verl chooses among engines for one kind of model and device


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cuda", vendor=VENDOR)
class FrozenVisionEngine(FSDPEngineWithLMHead):
    """No gradient, and no optimizer state, for the image encoder and the projector that it ends with."""

    def _build_module(self) -> torch.nn.Module:
        module = super()._build_module()
        module.model.visual.requires_grad_(False)
        return module
