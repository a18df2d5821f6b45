"""An extension of verl's vLLM worker for weights that arrive in shared memory."""

from typing import Any

import torch

from verl_prism.worker_extension import PrismWorkerExtension


class CpuWorkerExtension(PrismWorkerExtension):
    """Selected by the config key `rollout.engine_kwargs.vllm.worker_extension_cls`."""

    def _update_weights(
        self, weights: list[tuple[str, torch.Tensor]], *args: Any, **kwargs: Any
    ) -> None:
        """Copy the received tensors out of the shared buffer before they are loaded.

        On an accelerator `.to(device)` copies them. On CPU they are views of the buffer, and if one
        of them is still referenced when the buffer is closed, that raises `BufferError: cannot
        close exported pointers exist`.
        """
        copies = [(name, tensor.clone()) for name, tensor in weights]
        super()._update_weights(copies, *args, **kwargs)
