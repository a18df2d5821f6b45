"""A vLLM plugin that allows weights to be replaced while vLLM serves on CPU."""

import os


def register() -> None:
    """Disable oneDNN in vLLM on CPU.

    vLLM calls this entry point (`vllm.general_plugins`) in each process. With oneDNN, vLLM packs
    the weight of each Linear after loading and drops the original, so the next weight sync has
    nothing to load into. Without it, vLLM keeps the weights and calls `torch.nn.functional.linear`.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm import _custom_ops

        _custom_ops._supports_onednn = False
        # verl sets this to 1 for `rollout.full_determinism`. The kernels need Triton and a GPU.
        os.environ["VLLM_BATCH_INVARIANT"] = "0"
