"""What vLLM may not sample: the tokens that stand for a picture."""

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor


class NoImageTokens(LogitsProcessor):
    """Keeps image and video placeholders out of responses.

    A response that held one would show the actor an image token without an image, and end the run. The policy gives
    them next to no probability, but at temperature 1 a tiny model draws one in some hundred thousand tokens.
    """

    def __init__(self, vllm_config, device: torch.device, is_pin_memory: bool):
        config = vllm_config.model_config.hf_config
        self._banned = torch.tensor([config.image_token_id, config.video_token_id], device=device)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update) -> None:
        """The same for every request."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits[requests, vocabulary], changed in place."""
        return logits.index_fill_(-1, self._banned, float("-inf"))
