"""Plugins inside vLLM: tokens that are never sampled, and a scheduler for reproducible rollouts."""

import torch
from vllm.config import VllmConfig
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor


class NoImageTokens(LogitsProcessor):
    """Keeps image and video placeholders out of responses, as verl does in stages align and rlvr.

    A response with a placeholder would show the actor an image token without an image and end the
    run. The policy gives them almost no probability, but at temperature 1 a tiny model samples one
    in some hundred thousand tokens.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        config = vllm_config.model_config.hf_config
        self._banned = torch.tensor([config.image_token_id, config.video_token_id], device=device)

    def is_argmax_invariant(self) -> bool:
        """Return False: a placeholder may have the largest logit."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Do nothing: every request is treated the same."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Ban the placeholders in logits[requests, vocabulary], in place."""
        return logits.index_fill_(-1, self._banned, float("-inf"))


class WholeBatchScheduler(Scheduler):
    """Starts when all requests of a batch have arrived, so that a rerun forms the same batches.

    vLLM's scheduler starts with the first request, and the last bits of a matrix product depend on
    its number of rows. Each request carries the batch's number of requests in `extra_args` and its
    position in the batch as its priority.
    """

    def add_request(self, request: Request) -> None:
        """Queue a request, and start the batch if it is the last one."""
        super().add_request(request)
        _, waiting = self.get_request_counts()
        params = request.sampling_params
        assert params is not None
        assert params.extra_args is not None
        complete = waiting == params.extra_args["requests"]
        self.set_pause_state(PauseState.UNPAUSED if complete else PauseState.PAUSED_NEW)
