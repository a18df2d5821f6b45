"""What runs inside vLLM: what it may not sample, and when it begins with the requests of a step."""

import torch
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request
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


class WholeBatchScheduler(Scheduler):
    """Begins when all requests of a step are there, so that the same step is computed in the same batches again.

    vLLM's own scheduler begins with the first to arrive, and the last bits of a matrix product depend on the number of
    its rows. Each request says how many there are (`extra_args`), and its priority gives it its place among them.
    """

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        _, waiting = self.get_request_counts()
        assert (
            request.sampling_params is not None and request.sampling_params.extra_args is not None
        )
        whole = waiting == request.sampling_params.extra_args["requests"]
        self.set_pause_state(PauseState.UNPAUSED if whole else PauseState.PAUSED_NEW)
