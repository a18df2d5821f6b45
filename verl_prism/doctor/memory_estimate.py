"""An estimate of memory per device in each phase of a step, from model sizes and settings.

Weights, gradients and the two moments of AdamW are float32 and exact. Activations are rules of
thumb that err on the large side. All results are bytes.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from verl_prism.config import Data, Hardware, Prism
from verl_prism.doctor.finding import GIB

if TYPE_CHECKING:
    from verl_prism.doctor.sizes import Sizes

FP32 = 4  # bytes of a master weight, of a gradient, and of each moment of AdamW
# Processes on a GPU: CUDA, NCCL's buffers, vLLM's graphs while it sleeps, fragmentation.
GPU_PROCESSES = 5 * GIB
CPU_PROCESSES = 7 * GIB  # processes of a whole run on a CPU host, before any model is loaded
VLLM_ACTIVATIONS = 2 * GIB

GENERATION = "generation"
WEIGHT_SYNC = "weight sync to vLLM"
POLICY_UPDATE = "policy update"
DISCRIMINATOR_UPDATE = "discriminator update"

SHRINK_POLICY = "use more devices, or set prism.lora.rank=32"
SHRINK_DISCRIMINATOR = "use more devices, or lower prism.discriminator.upcycle.experts"
FIXES = {
    "policy's weights": SHRINK_POLICY,
    "policy's gradients": SHRINK_POLICY,
    "policy's AdamW states": SHRINK_POLICY,
    "policy's activations": "lower prism.hardware.max_tokens_per_device",
    "discriminator's weights": SHRINK_DISCRIMINATOR,
    "discriminator's gradients": SHRINK_DISCRIMINATOR,
    "discriminator's AdamW states": SHRINK_DISCRIMINATOR,
    "discriminator's activations": "lower prism.discriminator.micro_batch_tokens",
    "vLLM": "lower prism.hardware.gpu_memory_utilization",
    "vLLM's weights": "raise prism.hardware.tensor_parallel_size",
    "weight buffers": "lower prism.hardware.weight_bucket_mib",
    "idle models": "set prism.hardware.offload=true",
    "processes": "use a larger device",
}


@dataclass(frozen=True)
class Phase:
    """A phase of a training step, and the memory of each part on one device."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Memory of all parts."""
        return sum(self.parts.values())

    @property
    def fix(self) -> str:
        """How to shrink the largest part."""
        largest = max(self.parts, key=lambda part: self.parts[part])
        return FIXES[largest]


class TrainingState(NamedTuple):
    """Memory of one shard of a model in training."""

    weights: int
    gradients: int
    adam: int


def training_state(parameters: int, trainable: int, shards: int) -> TrainingState:
    """Return the memory of one of `shards` equal parts of a model in training."""
    return TrainingState(
        weights=FP32 * parameters // shards,
        gradients=FP32 * trainable // shards,
        adam=2 * FP32 * trainable // shards,
    )


@dataclass(frozen=True)
class DeviceMemory:
    """Memory that models take on one device, under these settings."""

    hardware: Hardware
    data: Data

    @property
    def ranks(self) -> int:
        """Number of devices that share the policy."""
        return self.hardware.devices_per_node * self.hardware.nodes

    @property
    def dtype_bytes(self) -> int:
        """Bytes of an activation, and of a weight in a forward pass."""
        return 2 if self.hardware.dtype == "bfloat16" else 4

    def processes(self) -> dict[str, int]:
        """Return what the processes take without any model."""
        on_gpu = self.hardware.device == "cuda"
        return {"processes": GPU_PROCESSES if on_gpu else CPU_PROCESSES // self.ranks}

    def vllm(self, policy: "Sizes", device_memory: int) -> dict[str, int]:
        """Return vLLM's share of a device; on CPU its weights and VLLM_CPU_KVCACHE_SPACE."""
        if self.hardware.device == "cpu":
            return {"vLLM": self.vllm_weights(policy) + GIB}
        return {"vLLM": round(self.hardware.gpu_memory_utilization * device_memory)}

    def vllm_weights(self, policy: "Sizes") -> int:
        """Return the policy's weights in vLLM."""
        return self.dtype_bytes * policy.total // self.hardware.tensor_parallel_size

    def cached_sequences(self, policy: "Sizes", device_memory: int) -> float:
        """Return how many sequences of the maximum length fit into vLLM's cache on a GPU."""
        share = self.hardware.gpu_memory_utilization * device_memory
        cache = max(share - self.vllm_weights(policy) - VLLM_ACTIVATIONS, 0)
        values_per_token = policy.cache * policy.layers
        bytes_per_token = values_per_token * self.dtype_bytes / self.hardware.tensor_parallel_size
        return cache / (bytes_per_token * self._max_tokens)

    def idle(self, parameters: int, trainable: int) -> int:
        """Return what a model leaves on the device while another model works."""
        if self.hardware.offload:
            return 0
        state = training_state(parameters, trainable, self.ranks)
        return state.weights + state.adam

    def policy_update(self, policy: "Sizes", trainable: int) -> dict[str, int]:
        """Return what training the policy takes."""
        state = training_state(policy.total, trainable, self.ranks)
        tokens = self.hardware.max_tokens_per_device
        image_tokens = tokens * self.data.max_prompt_tokens // self._max_tokens
        # The logits, and in float32 their copy for entropy or loss and its gradient.
        logits = tokens * policy.vocabulary * (self.dtype_bytes + 2 * FP32)
        forward = self.activations(policy, tokens, image_tokens) + self.gathered(policy) + logits
        return {
            "policy's weights": state.weights,
            "policy's gradients": state.gradients,
            "policy's AdamW states": state.adam,
            # The step of AdamW needs as much as the gradients, after the activations are freed.
            "policy's activations": max(forward, state.gradients),
        }

    def discriminator_update(
        self, discriminator: "Sizes", micro_batch_tokens: int, ranks: int
    ) -> dict[str, int]:
        """Return what training the discriminator on `ranks` devices takes.

        Images take no more memory than text, because a pack's limit counts patches
        (`GroupSizes.size`). Gradients are sharded after the backward pass of each layer.
        """
        state = training_state(discriminator.total, discriminator.total, ranks)
        activations = self.activations(discriminator, micro_batch_tokens, image_tokens=0)
        logits = discriminator.scored_tokens * discriminator.vocabulary
        activations += (2 * FP32 + self.dtype_bytes) * logits  # both dtypes, and the gradient
        forward = activations + self.gathered(discriminator)
        return {
            "discriminator's weights": state.weights,
            "discriminator's gradients": state.gradients,
            "discriminator's AdamW states": state.adam,
            "discriminator's activations": max(forward, state.gradients),
        }

    def weight_sync(self, policy: "Sizes", lora_rank: int) -> dict[str, int]:
        """Return vLLM's weights and the buffers that new weights pass through.

        The buffers are the bucket, the largest tensor in float32 and, if adapters are merged, the
        policy's shard.
        """
        bucket = self.hardware.weight_bucket_mib * 2**20
        merged = FP32 * policy.total // self.ranks if lora_rank else 0
        return {
            "vLLM's weights": self.vllm_weights(policy),
            "weight buffers": bucket + FP32 * policy.largest + merged,
        }

    def activations(self, sizes: "Sizes", tokens: int, image_tokens: int) -> int:
        """Return the activations of one pass over packed tokens, some of which are of images."""
        checkpointing = self.hardware.gradient_checkpointing
        layer_input = tokens * self.dtype_bytes * sizes.hidden
        layer_width = 2 * sizes.attention + 4 * sizes.mlp + 8 * sizes.hidden
        layer = tokens * self.dtype_bytes * layer_width
        patches = image_tokens * sizes.merged_patches
        vision_inputs = patches * self.dtype_bytes * sizes.vision_hidden * sizes.vision_depth
        if checkpointing:
            return sizes.layers * layer_input + 2 * layer + vision_inputs
        return (sizes.layers + 1) * layer + 16 * vision_inputs

    def gathered(self, sizes: "Sizes") -> int:
        """Return the unsharded parameters of a pass.

        These are two layers, the embeddings and the head in the dtype of the pass, and the gradient
        of the largest of them.
        """
        parameters = 2 * sizes.layer + sizes.embeddings + sizes.head
        return self.dtype_bytes * parameters + FP32 * max(sizes.layer, sizes.embeddings)

    @property
    def _max_tokens(self) -> int:
        return self.data.max_tokens


def phases(
    prism: Prism, policy: "Sizes", discriminator: "Sizes | None", device_memory: int
) -> list[Phase]:
    """Estimate each phase of one step of the stage.

    Args:
        discriminator: None if the stage has none.
        device_memory: Memory of one device.
    """
    device = DeviceMemory(prism.hardware, prism.data)
    processes = device.processes()
    match prism.stage:
        case "sample" | "eval":
            return [Phase(GENERATION, processes | device.vllm(policy, device_memory))]
        case "sft" | "dpo":
            update = device.policy_update(policy, trainable_parameters(prism, policy))
            return [Phase(POLICY_UPDATE, processes | update)]
        case "warmup":
            assert discriminator is not None
            tokens = prism.discriminator.micro_batch_tokens
            update = device.discriminator_update(discriminator, tokens, device.ranks)
            return [
                Phase(GENERATION, processes | device.vllm(policy, device_memory)),
                Phase(DISCRIMINATOR_UPDATE, processes | update),
            ]
    return _rl_phases(prism, policy, discriminator, device_memory)


def _rl_phases(
    prism: Prism, policy: "Sizes", discriminator: "Sizes | None", device_memory: int
) -> list[Phase]:
    device = DeviceMemory(prism.hardware, prism.data)
    processes = device.processes()
    trainable = trainable_parameters(prism, policy)
    own_pool = prism.discriminator.placement == "pool"
    policy_idle = device.idle(policy.total, trainable)
    discriminator_idle = 0
    if discriminator is not None and not own_pool:
        discriminator_idle = device.idle(discriminator.total, discriminator.total)
    both_idle = {"idle models": policy_idle + discriminator_idle}
    update = device.policy_update(policy, trainable) | {"idle models": discriminator_idle}
    step = [
        Phase(GENERATION, processes | device.vllm(policy, device_memory) | both_idle),
        Phase(WEIGHT_SYNC, processes | device.weight_sync(policy, prism.lora.rank) | both_idle),
        Phase(POLICY_UPDATE, processes | update),
    ]
    if discriminator is not None:
        ranks = prism.discriminator.pool_devices if own_pool else device.ranks
        tokens = prism.discriminator.micro_batch_tokens
        update = device.discriminator_update(discriminator, tokens, ranks)
        idle = {"idle models": 0 if own_pool else policy_idle}
        step.append(Phase(DISCRIMINATOR_UPDATE, processes | update | idle))
    return step


def trainable_parameters(prism: Prism, policy: "Sizes") -> int:
    """Return the number of the policy's parameters that are trained."""
    if prism.lora.rank:
        return policy.adapters(prism.lora.rank)
    if prism.stage == "sft" and prism.sft.freeze_vision:
        return policy.total - policy.vision
    return policy.total


def host_memory(prism: Prism, policy: "Sizes", discriminator: "Sizes | None") -> int:
    """Return what one node's host memory holds.

    These are offloaded models, remembered groups and, while the largest model is loaded, a whole
    copy for each rank.
    """
    models: list[tuple[int, int]] = []
    if prism.stage != "warmup":
        models.append((policy.total, trainable_parameters(prism, policy)))
    if discriminator is not None:
        models.append((discriminator.total, discriminator.total))
    loading = FP32 * max(total for total, _ in models) * prism.hardware.devices_per_node
    held = loading + replay_memory(prism, discriminator)
    if not prism.hardware.offload:
        return held
    nodes = prism.hardware.nodes
    offloaded = [sum(training_state(total, trainable, nodes)) for total, trainable in models]
    return held + sum(offloaded)


def replay_memory(prism: Prism, discriminator: "Sizes | None") -> int:
    """Return what the groups that the discriminator remembers take on one node.

    Only their images count, which are float32. They take at most all tokens of a prompt.
    """
    settings = prism.discriminator
    if prism.stage != "align" or discriminator is None or settings.replay_share == 0:
        return 0
    own_pool = settings.placement == "pool"
    ranks = settings.pool_devices if own_pool else prism.hardware.devices_per_node
    patches = prism.data.max_prompt_tokens * discriminator.merged_patches
    return ranks * settings.replay_groups * patches * discriminator.patch_values * FP32


def checkpoint_bytes(policy: int, discriminator: int, lora: bool) -> int:
    """Return the size of one checkpoint from the numbers of parameters.

    A checkpoint holds float32 weights, the moments of AdamW (too small to count for adapters) and a
    Hugging Face folder, of the policy and of the discriminator.
    """
    policy_tensors = 2 if lora else 4
    return FP32 * (policy_tensors * policy + 4 * discriminator)
