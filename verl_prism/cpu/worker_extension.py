"""verl's extension of the vLLM worker, for weights that arrive in shared memory."""

from typing import Any

import torch
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension


class CpuWorkerExtension(vLLMColocateWorkerExtension):
    """Chosen by config: `rollout.engine_kwargs.vllm.worker_extension_cls`."""

    def _update_weights(
        self, weights: list[tuple[str, torch.Tensor]], *args: Any, **kwargs: Any
    ) -> None:
        """Copies the received tensors out of the shared buffer before they are loaded.

        On an accelerator `.to(device)` has copied them. On CPU they are views, and what still refers to one when the
        buffer is closed raises `BufferError: cannot close exported pointers exist`.
        """
        super()._update_weights(
            [(name, tensor.clone()) for name, tensor in weights], *args, **kwargs
        )
