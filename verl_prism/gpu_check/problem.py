"""Sizes, the config of a Qwen3-VL-MoE with random weights, and groups of random texts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from verl_prism.discriminator import (
    DiscriminatorConfig,
    FlopModel,
    Group,
    GroupSizes,
    Prompt,
    SpanIds,
    Spans,
    group_sizes,
    training_factor,
)
from verl_prism.gpu_check.reference import Sample
from verl_prism.response import View

MERGE, PATCH, CHANNELS, FRAMES = 2, 16, 3, 2  # of Qwen3-VL's vision tower
SPREAD = 0.25  # largest relative deviation of a text's length from its mean


@dataclass(frozen=True)
class Setting:
    """Sizes of a model and of its groups. Text lengths are means in tokens, with the image.

    The default takes minutes on two cores, mostly in matrix products. The vision tower cannot be
    scaled down like the rest, because an image has four patches per token. Here an image costs as
    much as 390 tokens of text, and in Qwen3-VL-2B as much as 117.
    """

    device: str = "cpu"
    dtype: str = "float32"
    students: tuple[int, ...] = (8, 16)  # N, one comparison for each
    groups: int = 1  # in a discriminator step
    prompt: int = 256
    image_side: int = 28  # patches; tokens are a quarter of its square
    caption: int = 64
    reasoning: int = 192
    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    key_heads: int = 2
    head_dim: int = 64
    experts: int = 4
    experts_per_token: int = 2
    intermediate: int = 384  # of one expert
    vision_hidden: int = 128
    vision_layers: int = 3
    vision_heads: int = 2
    vision_intermediate: int = 512
    deepstack: tuple[int, ...] = (0,)  # vision layers whose features enter the text layers
    optimizer: str = "AdamW"
    checkpointing: bool = False  # of activations, on both sides
    max_tokens: int = 32768  # of a pack of ours
    reference_micro_batch: int = 1  # samples with four graphs each; one needs the least memory
    repeats: int = 5
    seed: int = 0

    @property
    def image_tokens(self) -> int:
        """Tokens of an image."""
        return (self.image_side // MERGE) ** 2

    @property
    def image_token(self) -> int:
        """Id of the token that stands for a part of an image."""
        return self.vocabulary - 1

    @property
    def terminal_token(self) -> int:
        """Id of the token that ends a span."""
        return self.vocabulary - 5


CPU = Setting()
QUICK = Setting(
    students=(2,),
    prompt=32,
    image_side=8,
    caption=6,
    reasoning=12,
    vocabulary=128,
    hidden=64,
    layers=2,
    heads=2,
    key_heads=1,
    head_dim=32,
    intermediate=96,
    vision_hidden=32,
    vision_layers=2,
    vision_intermediate=64,
    repeats=1,
)
# Qwen3-VL-2B upcycled to 4 experts: 5.3 B parameters.
QWEN3_VL_2B = Setting(
    dtype="bfloat16",
    students=(16,),
    vocabulary=151936,
    hidden=2048,
    layers=28,
    heads=16,
    key_heads=8,
    head_dim=128,
    intermediate=6144,
    vision_hidden=1024,
    vision_layers=24,
    vision_heads=16,
    vision_intermediate=4096,
    deepstack=(5, 11, 17),
    optimizer="SGD",
    checkpointing=True,
)


def config_fields(s: Setting) -> dict[str, Any]:
    """Arguments of Qwen3VLMoeConfig."""
    rotary = s.head_dim // 2
    side = rotary * 5 // 16
    return {
        "text_config": {
            "vocab_size": s.vocabulary,
            "hidden_size": s.hidden,
            "intermediate_size": s.intermediate,
            "moe_intermediate_size": s.intermediate,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.key_heads,
            "head_dim": s.head_dim,
            "num_experts": s.experts,
            "num_experts_per_tok": s.experts_per_token,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [rotary - 2 * side, side, side],
                "mrope_interleaved": True,
            },
        },
        "vision_config": {
            "depth": s.vision_layers,
            "hidden_size": s.vision_hidden,
            "intermediate_size": s.vision_intermediate,
            "num_heads": s.vision_heads,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            "out_hidden_size": s.hidden,
            "deepstack_visual_indexes": list(s.deepstack),
        },
        "image_token_id": s.image_token,
        "video_token_id": s.vocabulary - 2,
        "vision_start_token_id": s.vocabulary - 3,
        "vision_end_token_id": s.vocabulary - 4,
    }


def make_groups(s: Setting, students: int) -> list[Group]:
    """Groups of distinct random texts, each under a prompt with an image of its own."""
    rng = random.Random(s.seed)

    def tokens(mean: float) -> list[int]:
        length = rng.randint(round(mean * (1 - SPREAD)), round(mean * (1 + SPREAD)))
        return [rng.randrange(1, s.terminal_token) for _ in range(length)]

    def spans() -> dict[View, SpanIds]:
        lengths = {View.PERCEPTION: s.caption, View.REASONING: s.reasoning}
        return {view: (*tokens(length), s.terminal_token) for view, length in lengths.items()}

    def prompt() -> Prompt:
        text = (s.prompt - s.image_tokens - 2) / 2  # before the image and after it
        start, end = s.vocabulary - 3, s.vocabulary - 4
        ids = [*tokens(text), start, *[s.image_token] * s.image_tokens, end, *tokens(text)]
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        pixels = torch.randn(s.image_side**2, CHANNELS * FRAMES * PATCH**2, generator=generator)
        return Prompt(torch.tensor(ids), pixels, torch.tensor([[1, s.image_side, s.image_side]]))

    return [Group(prompt(), spans(), [spans() for _ in range(students)]) for _ in range(s.groups)]


def make_samples(s: Setting, groups: Sequence[Group]) -> list[Sample]:
    """Return the groups as samples of the reference, on the device: one per student, in order."""

    def ids(spans: Spans) -> dict[str, torch.Tensor]:
        return {
            "caption": torch.tensor(spans[View.PERCEPTION], device=s.device),
            "reasoning": torch.tensor(spans[View.REASONING], device=s.device),
        }

    samples = []
    for group in groups:
        parts = (group.prompt.input_ids, group.prompt.pixel_values, group.prompt.image_grid_thw)
        prompt = Prompt(*(part.to(s.device) for part in parts if part is not None))
        valid = [spans for spans in group.students if spans is not None]
        samples += [Sample(prompt, ids(spans), ids(group.teacher)) for spans in valid]
    return samples


def real_tokens(samples: Sequence[Sample], groups: int) -> int:
    """Tokens that exist: each prompt and each teacher once, and every student."""
    shared = samples[:: len(samples) // groups]
    return sum(
        len(sample.prompt.input_ids) + sum(map(len, sample.teacher.values())) for sample in shared
    ) + sum(len(span) for sample in samples for span in sample.student.values())


def step_flops(s: Setting, groups: Sequence[Group]) -> dict[str, float]:
    """Return the model FLOPs of a step of each algorithm.

    A backward pass counts as two forward passes, and a recomputed forward pass as none. In the last
    layer, ours sends only terminal tokens to experts. All responses must be valid.
    """
    flops = FlopModel.of(DiscriminatorConfig(**config_fields(s)))
    sizes = [group_sizes(group) for group in groups]
    ours = sum(flops.part(each, range(each.valid)) for each in sizes)
    reference = sum(reference_flops(flops, each) for each in sizes)
    return {"reference": reference, "ours": training_factor(checkpointing=False) * ours}


def reference_flops(flops: FlopModel, sizes: GroupSizes) -> float:
    """Return the FLOPs of the published algorithm's step on one group.

    Each text of a student is computed once to score it and with gradients to learn from it, and the
    teacher's with gradients for each student.
    """
    images = sum(map(flops.image, sizes.images))

    def alone(span: int) -> float:
        tokens = sizes.prompt + span
        return images + flops.prompt(tokens) + flops.expert_token * tokens

    training = training_factor(checkpointing=False)
    total = 0.0
    for student in sizes.students:
        for own, teacher in zip(student or (), sizes.teacher, strict=True):
            total += (1 + training) * alone(own) + training * alone(teacher)
    return total
