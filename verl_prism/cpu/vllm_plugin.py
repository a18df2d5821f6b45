"""What a vLLM process needs on CPU so that its weights can be replaced while it serves."""

import os


def register() -> None:
    """Entry point of the group `vllm.general_plugins`; vLLM calls it in each of its processes.

    vLLM packs the weight of each Linear for oneDNN after loading and drops the original, so the next weight sync finds
    nothing to load into. Without oneDNN it keeps the weights and calls `torch.nn.functional.linear`.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm import _custom_ops

        _custom_ops._supports_onednn = False
        # verl asks for these kernels where `rollout.full_determinism` is set; they are Triton's, for GPUs.
        os.environ["VLLM_BATCH_INVARIANT"] = "0"
