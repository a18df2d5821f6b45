"""verl's language-model engine with a frozen vision tower, for which verl has no setting."""

import torch
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngineWithLMHead

VENDOR = "prism_frozen_vision"  # VERL_ENGINE_VENDOR selects this engine


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cuda", vendor=VENDOR)
class FrozenVisionEngine(FSDPEngineWithLMHead):
    """The image encoder and its projector have no gradients and no optimizer state."""

    def _build_module(self) -> torch.nn.Module:
        module = super()._build_module()
        module.model.visual.requires_grad_(False)
        return module
