"""An estimate of the time of a stage, from model sizes, settings and mean lengths of texts.

Training is bounded by matrix products, and sampling by the memory's bandwidth. The shares of the
maker's peaks are assumed. Times are seconds, sizes bytes.
"""

import math
from dataclasses import dataclass

from verl_prism.config import Prism
from verl_prism.discriminator.costs import FlopModel, GroupSizes, training_factor
from verl_prism.discriminator.plan import assign
from verl_prism.doctor.lengths import Lengths
from verl_prism.doctor.memory_estimate import DeviceMemory, trainable_parameters, training_state
from verl_prism.doctor.sizes import Sizes
from verl_prism.gpu_check.peaks import Peak

MFU = 0.35  # share of the peak FLOP/s, in training and while vLLM reads prompts
BANDWIDTH_SHARE = 0.6  # of the memory's peak bandwidth, while vLLM decodes
DECODE_OVERHEAD = 0.003  # of scheduling and sampling, for each token that a batch advances
OFFLOAD_BANDWIDTH = 10e9  # bytes per second between one device and host memory
LONGEST = 2  # mean lengths of the longest response; lengths are spread evenly from 0 to there

ROLLOUT = "rollout"
DISCRIMINATOR = "discriminator"
UPDATE = "update"
OFFLOAD = "offloading"


@dataclass(frozen=True)
class Model:
    """Sizes of a model, and the operations of its forward pass."""

    sizes: Sizes
    flops: FlopModel


@dataclass(frozen=True)
class Gpu:
    """A device: peak speeds, and memory in bytes."""

    peak: Peak
    memory: int


@dataclass(frozen=True)
class StageTime:
    """Seconds of a whole stage, by what takes them."""

    steps: int
    devices: int
    parts: dict[str, float]

    @property
    def step_seconds(self) -> float:
        """Mean time of a step, with its share of what happens once."""
        return sum(self.parts.values()) / self.steps

    @property
    def gpu_hours(self) -> float:
        """Hours of all devices together."""
        return sum(self.parts.values()) * self.devices / 3600


@dataclass(frozen=True)
class TimeModel:
    """The run of a stage. Devices of the policy are equally busy."""

    prism: Prism
    policy: Model
    discriminator: Model | None
    lengths: Lengths
    gpu: Gpu

    @property
    def ranks(self) -> int:
        """Number of devices that share the policy."""
        return self.prism.hardware.devices_per_node * self.prism.hardware.nodes

    @property
    def discriminator_ranks(self) -> int:
        """Number of devices that share the discriminator."""
        settings = self.prism.discriminator
        own_pool = self.prism.stage == "align" and settings.placement == "pool"
        return settings.pool_devices if own_pool else self.ranks

    @property
    def patches(self) -> int:
        """Patches of the image of a prompt. Several images count as a large one."""
        return round(self.lengths.images * self.policy.sizes.merged_patches)

    def compute(self, flops: float) -> float:
        """Return the time of matrix products on one device."""
        return flops / (MFU * self.gpu.peak.tflops * 1e12)

    def read(self, nbytes: float) -> float:
        """Return the time in which one device reads this many bytes of its memory."""
        return nbytes / (BANDWIDTH_SHARE * self.gpu.peak.bandwidth * 1e12)

    def rollout(self, requests: float) -> float:
        """Return the time in which all engines answer this many requests.

        Each request reads its prompt, although requests with the same prompt share some of that.
        An engine starts a waiting request as soon as another one ends.
        """
        tensor_parallel = self.prism.hardware.tensor_parallel_size
        share = requests * tensor_parallel / self.ranks  # of one engine
        mean = self.lengths.response
        longest = min(LONGEST * mean, self.prism.data.max_response_tokens)
        batch = min(share, self.concurrency())
        iterations = longest + mean * (share / batch - 1)
        sizes = self.policy.sizes
        value_bytes = DeviceMemory(self.prism.hardware, self.prism.data).dtype_bytes
        weights = value_bytes * (sizes.layers * sizes.layer + sizes.embeddings)
        cached_tokens = share * (self.lengths.prompt * mean + LONGEST / 3 * mean**2)
        cache = value_bytes * sizes.layers * sizes.cache * cached_tokens
        memory = self.read((iterations * weights + cache) / tensor_parallel)
        flops = self.policy.flops
        reading = share * (flops.span(0, round(self.lengths.prompt)) + flops.image(self.patches))
        prefill = self.compute(reading / tensor_parallel)
        decode = self.compute(share * flops.span(round(self.lengths.prompt), round(mean)))
        return prefill + max(memory, decode / tensor_parallel) + DECODE_OVERHEAD * iterations

    def concurrency(self) -> float:
        """Return how many sequences of mean length an engine decodes at the same time."""
        data, hardware = self.prism.data, self.prism.hardware
        longest = DeviceMemory(hardware, data).cached_sequences(self.policy.sizes, self.gpu.memory)
        tokens = longest * data.max_tokens
        return max(1.0, min(hardware.max_num_seqs, tokens / self.lengths.sequence))

    def forward(self, sequences: float) -> float:
        """Return the time in which the policy reads prompts with responses."""
        flops = self.policy.flops
        each = flops.span(0, round(self.lengths.sequence)) + flops.image(self.patches)
        return self.compute(sequences * each / self.ranks)

    def update(self, sequences: float) -> float:
        """Return the time in which the policy learns from prompts with responses.

        Frozen weights have no gradients, and an image encoder that is frozen no backward pass.
        """
        prism = self.prism
        passes = training_factor(prism.hardware.gradient_checkpointing)
        text_passes = passes - 1 if prism.lora.rank else passes
        frozen = prism.lora.rank or (prism.stage == "sft" and prism.sft.freeze_vision)
        image_passes = 1 if frozen else passes
        flops = self.policy.flops
        text = text_passes * flops.span(0, round(self.lengths.sequence))
        images = image_passes * flops.image(self.patches)
        return self.compute(sequences * (text + images) / self.ranks)

    def discriminator_step(self, prompts: int, students: int, updates: int = 1) -> float:
        """Return the time in which the busiest device learns from its share of the groups."""
        assert self.discriminator is not None
        settings = self.prism.discriminator
        flops = self.discriminator.flops
        spans = (round(self.lengths.perception), round(self.lengths.reasoning))
        group = GroupSizes(round(self.lengths.prompt), (self.patches,), spans, (spans,) * students)
        groups = [group] * prompts
        busiest = 0.0
        for packs in assign(groups, self.discriminator_ranks, settings.micro_batch_tokens, flops):
            parts = [part for pack in packs for part in pack]
            busiest = max(busiest, sum(flops.part(group, part.members) for part in parts))
        passes = updates * training_factor(self.prism.hardware.gradient_checkpointing)
        if settings.gradient_penalty:
            passes *= 2
        if updates > 1:
            passes += 1  # scores the policy first
        return self.compute(passes * busiest)

    def offload(self) -> float:
        """Return the time in which trained models move to the device and back in a step."""
        if not self.prism.hardware.offload:
            return 0.0
        policy = self.policy.sizes
        trainable = trainable_parameters(self.prism, policy)
        states = [training_state(policy.total, trainable, self.ranks)]
        if self.discriminator is not None:
            total = self.discriminator.sizes.total
            states.append(training_state(total, total, self.discriminator_ranks))
        return 2 * sum(state.weights + state.adam for state in states) / OFFLOAD_BANDWIDTH

    def sft(self) -> dict[str, float]:
        """Return the seconds of stage sft by part."""
        steps = self.prism.steps
        update = self.update(self.prism.sft.examples_per_step)
        return {UPDATE: steps * update, OFFLOAD: steps * self.offload()}

    def dpo(self) -> dict[str, float]:
        """Return the seconds of stage dpo. Each pair is read once before, for the reference."""
        responses = 2 * self.prism.dpo.pairs_per_step * self.prism.steps
        update = self.update(responses) + self.forward(responses)
        return {UPDATE: update, OFFLOAD: self.prism.steps * self.offload()}

    def warmup(self) -> dict[str, float]:
        """Return the seconds of stage warmup: the policy is sampled once, before the first step."""
        warmup = self.prism.warmup
        students = warmup.samples_per_prompt + warmup.mismatched_teachers
        prompts = math.ceil(warmup.pairs_per_step / students)
        parts = {DISCRIMINATOR: self.prism.steps * self.discriminator_step(prompts, students)}
        if warmup.responses == "sample":
            parts[ROLLOUT] = self.rollout(warmup.prompts * warmup.samples_per_prompt)
        return parts

    def rl(self) -> dict[str, float]:
        """Return the seconds of stages align and rlvr by part."""
        settings, steps = self.prism.rollout, self.prism.steps
        students = settings.samples_per_prompt
        responses = settings.prompts_per_step * students
        update = self.update(responses)
        if settings.old_log_probs == "always":
            update += self.forward(responses)
        parts = {ROLLOUT: self.rollout(responses), UPDATE: update, OFFLOAD: self.offload()}
        if self.discriminator is not None:
            new = 1 - self.prism.discriminator.replay_share
            groups = round(settings.prompts_per_step / new)
            updates = self.prism.discriminator.updates_per_step
            parts[DISCRIMINATOR] = self.discriminator_step(groups, students, updates)
        return {name: steps * seconds for name, seconds in parts.items()}


def stage_time(model: TimeModel) -> StageTime:
    """Return the time of a stage that trains.

    Starting, saving, grading, a judge and the evaluation are left out, and so are groups that DAPO
    samples again.
    """
    prism = model.prism
    match prism.stage:
        case "sft":
            parts = model.sft()
        case "dpo":
            parts = model.dpo()
        case "warmup":
            parts = model.warmup()
        case "align" | "rlvr":
            parts = model.rl()
        case _:
            raise AssertionError(f"stage {prism.stage} does not train")
    taken = {name: seconds for name, seconds in parts.items() if seconds}
    return StageTime(prism.steps, prism.devices, taken)
