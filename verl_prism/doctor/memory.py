"""What one device holds at each moment of a step: an estimate from the models' sizes and the run's settings.

Weights, gradients and AdamW's two moments are float32 and exact; activations are rules of thumb, on the large side.
All figures are bytes on one device.
"""

from dataclasses import dataclass

from verl_prism.config import Prism
from verl_prism.doctor.sizes import Sizes

GIB = 2**30
MASTER = 4  # bytes of a weight, a gradient, and of each of AdamW's moments
CONTEXTS = (
    5 * GIB
)  # of the processes on a GPU: CUDA, NCCL's buffers, vLLM's graphs while it sleeps, fragmentation
PROCESSES = 7 * GIB  # on a CPU host: what a run takes before it has a model

LOWER = {
    "policy's weights": "more devices, or prism.lora.rank=32",
    "policy's gradients": "more devices, or prism.lora.rank=32",
    "policy's AdamW states": "more devices, or prism.lora.rank=32",
    "policy's activations": "a smaller prism.hardware.max_tokens_per_device",
    "discriminator's weights": "more devices, or fewer prism.discriminator.upcycle.experts",
    "discriminator's gradients": "more devices, or fewer prism.discriminator.upcycle.experts",
    "discriminator's AdamW states": "more devices, or fewer prism.discriminator.upcycle.experts",
    "discriminator's activations": "a smaller prism.discriminator.micro_batch_tokens",
    "vLLM": "a smaller prism.hardware.gpu_memory_utilization",
    "vLLM's weights": "a larger prism.hardware.tensor_parallel_size",
    "weights on their way": "a smaller prism.hardware.weight_bucket_mib",
    "idle models": "prism.hardware.offload=true",
    "processes": "a larger device",
}


@dataclass(frozen=True)
class Moment:
    """A name, and what is on a device then."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def lower(self) -> str:
        """The setting that the largest part depends on."""
        return LOWER[max(self.parts, key=lambda part: self.parts[part])]


def moments(prism: Prism, policy: Sizes, discriminator: Sizes | None, device: int) -> list[Moment]:
    """Of one step of the stage. device: bytes of a device; discriminator: None where the stage has none."""
    ranks = prism.hardware.devices_per_node * prism.hardware.nodes
    processes = {"processes": CONTEXTS if prism.hardware.device == "cuda" else PROCESSES // ranks}
    cpu_share = served_weights(prism, policy) + GIB  # VLLM_CPU_KVCACHE_SPACE
    share = (
        cpu_share
        if prism.hardware.device == "cpu"
        else round(prism.hardware.gpu_memory_utilization * device)
    )
    served = Moment("vLLM generates", processes | {"vLLM": share})
    if prism.stage == "eval":
        return [served]
    if prism.stage == "sft":
        return [Moment("the policy learns", processes | learning(prism, policy, ranks))]
    if prism.stage == "warmup":
        assert discriminator is not None
        return [
            served,
            Moment("the discriminator learns", processes | judging(prism, discriminator, ranks)),
        ]
    pool = prism.discriminator.placement == "pool"
    colocated = (
        0
        if discriminator is None or pool
        else idle(prism, discriminator.total, discriminator.total, ranks)
    )
    own = idle(prism, policy.total, trained(prism, policy), ranks)
    step = [
        Moment("vLLM generates", served.parts | {"idle models": own + colocated}),
        Moment(
            "vLLM gets new weights",
            processes | handover(prism, policy, ranks) | {"idle models": own + colocated},
        ),
        Moment(
            "the policy learns",
            processes | learning(prism, policy, ranks) | {"idle models": colocated},
        ),
    ]
    if discriminator is not None:
        judges, beside = (prism.discriminator.pool_devices, 0) if pool else (ranks, own)
        parts = processes | judging(prism, discriminator, judges) | {"idle models": beside}
        step.append(Moment("the discriminator learns", parts))
    return step


def trained(prism: Prism, policy: Sizes) -> int:
    """The policy's parameters that learn."""
    if prism.lora.rank:
        return policy.adapters(prism.lora.rank)
    return policy.total - (policy.vision if prism.stage == "sft" and prism.sft.freeze_vision else 0)


def state(parameters: int, learning: int, ranks: int) -> tuple[int, int, int]:
    """Weights, gradients and AdamW's moments, sharded."""
    return MASTER * parameters // ranks, MASTER * learning // ranks, 2 * MASTER * learning // ranks


def idle(prism: Prism, parameters: int, learning: int, ranks: int) -> int:
    """What a model leaves on the device while another one works."""
    weights, _, adam = state(parameters, learning, ranks)
    return 0 if prism.hardware.offload else weights + adam


def learning(prism: Prism, policy: Sizes, ranks: int) -> dict[str, int]:
    weights, gradients, adam = state(policy.total, trained(prism, policy), ranks)
    tokens = prism.hardware.max_tokens_per_device
    # logits, the float32 copy that entropy or loss needs, and their gradient
    logits = tokens * policy.vocabulary * (10 if prism.hardware.dtype == "bfloat16" else 12)
    passing = activations(prism, policy, tokens) + gathered(prism, policy) + logits
    return {
        "policy's weights": weights,
        "policy's gradients": gradients,
        "policy's AdamW states": adam,
        "policy's activations": max(
            passing, gradients
        ),  # AdamW's step needs as much again, when they are gone
    }


def judging(prism: Prism, discriminator: Sizes, ranks: int) -> dict[str, int]:
    """Its gradients are whole on each rank until its last micro-batch, when they are summed and sharded."""
    weights, gradients, adam = state(discriminator.total, discriminator.total, ranks)
    tokens = prism.discriminator.micro_batch_tokens
    passing = activations(prism, discriminator, tokens) + gathered(prism, discriminator)
    return {
        "discriminator's weights": weights,
        "discriminator's gradients": gradients * ranks,
        "discriminator's AdamW states": adam,
        "discriminator's activations": max(passing, gradients),
    }


def handover(prism: Prism, policy: Sizes, ranks: int) -> dict[str, int]:
    """vLLM's weights, the buffer, the largest tensor in float32 and, where adapters are merged, the policy's shard."""
    merged = MASTER * policy.total // ranks if prism.lora.rank else 0
    return {
        "vLLM's weights": served_weights(prism, policy),
        "weights on their way": prism.hardware.weight_bucket_mib * 2**20
        + MASTER * policy.largest
        + merged,
    }


def served_weights(prism: Prism, policy: Sizes) -> int:
    return _width(prism) * policy.total // prism.hardware.tensor_parallel_size


def cached_sequences(prism: Prism, policy: Sizes, device: int) -> float:
    """How many of the longest sequences vLLM's cache holds at once."""
    room = (
        prism.hardware.gpu_memory_utilization * device - served_weights(prism, policy) - 2 * GIB
    )  # its own activations
    token = policy.cache * policy.layers * _width(prism) / prism.hardware.tensor_parallel_size
    return max(room, 0) / (token * (prism.data.max_prompt_tokens + prism.data.max_response_tokens))


def activations(prism: Prism, sizes: Sizes, tokens: int) -> int:
    """Of one pass over a pack, of which prompts may be images throughout."""
    width, checkpoints = _width(prism), prism.hardware.gradient_checkpointing
    layer = tokens * width * (2 * sizes.attention + 4 * sizes.mlp // 3 + 8 * sizes.hidden)
    kept = tokens * width * sizes.hidden
    text = sizes.layers * kept + 2 * layer if checkpoints else (sizes.layers + 1) * layer
    prompt = prism.data.max_prompt_tokens
    images = tokens * prompt // (prompt + prism.data.max_response_tokens) * sizes.merged_patches
    return text + images * width * sizes.vision_hidden * sizes.vision_depth * (
        1 if checkpoints else 16
    )


def gathered(prism: Prism, sizes: Sizes) -> int:
    """Two layers, embeddings and head whole, in the dtype of a pass; and the gradient of the largest of them."""
    whole = 2 * sizes.layer + sizes.embeddings + sizes.head
    return _width(prism) * whole + MASTER * max(sizes.layer, sizes.embeddings)


def host_memory(prism: Prism, policy: Sizes, discriminator: Sizes | None) -> int:
    """What a node's own memory holds: idle models and, while models are loaded, a whole copy of one for each rank."""
    here, nodes = prism.hardware.devices_per_node, prism.hardware.nodes
    models = [(policy.total, trained(prism, policy))] if prism.stage != "warmup" else []
    models += [] if discriminator is None else [(discriminator.total, discriminator.total)]
    kept = (
        sum(sum(state(total, learning, nodes)) for total, learning in models)
        if prism.hardware.offload
        else 0
    )
    return kept + max((MASTER * total * here for total, _ in models), default=0)


def checkpoint_bytes(prism: Prism, policy: int, discriminator: int) -> int:
    """Of one checkpoint, from parameter counts: float32 weights, AdamW's moments, and a Hugging Face folder."""
    learning = 0 if prism.lora.rank else policy
    return MASTER * (2 * policy + 2 * learning + 4 * discriminator)


def _width(prism: Prism) -> int:
    return 2 if prism.hardware.dtype == "bfloat16" else 4
