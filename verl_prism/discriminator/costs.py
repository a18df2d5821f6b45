"""Sizes of groups, and the operations that a discriminator needs for them.

Pure arithmetic, without tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SpanTokens = tuple[int, ...]  # tokens of the span of each view, terminal tokens included

PATCH_SIZE = 0.2  # of a patch in a pack, in tokens


@dataclass(frozen=True)
class GroupSizes:
    """Sizes of a group, in tokens and patches."""

    prompt: int  # tokens, those of its images included
    images: tuple[int, ...]  # patches of each image
    teacher: SpanTokens
    students: tuple[SpanTokens | None, ...]  # None: an invalid response

    def tokens(self, members: Sequence[int]) -> int:
        """Return the number of tokens of a part with these students, if no two are equal."""
        spans = [self.students[member] or () for member in members]
        return self.prompt + sum(self.teacher) + sum(map(sum, spans))

    def size(self, members: Sequence[int]) -> float:
        """Return how much of a pack's limit a part takes, in tokens.

        Patches of images count too. Otherwise packs of many images and little text would take more
        memory than those of text: the vision tower needs as much for a patch as the text layers of
        a discriminator from Qwen3-VL-2B need for 0.4 tokens, but not at the same time.
        """
        return self.tokens(members) + PATCH_SIZE * sum(self.images)

    @property
    def valid(self) -> int:
        """Number of valid students."""
        return sum(spans is not None for spans in self.students)


@dataclass(frozen=True)
class FlopModel:
    """Floating-point operations of one forward pass.

    Only matrix products count, and attention counts the pairs of tokens that see each other. In the
    last layer only the tokens that scores are read from go to experts.
    """

    layers: int
    token: float  # of one token in the attention projections of one layer
    expert_token: float  # of one token in the router and the active experts of one layer
    pair: float  # of one query and one key in one layer
    output: float  # of one token of a span in the output layer; 0 if a head reads the score
    patch: float  # of one patch in the whole vision tower, without attention
    patch_pair: float  # of two patches of one image in the attention of all vision layers

    @classmethod
    def of(cls, config: Any) -> "FlopModel":
        """Take the sizes from a `DiscriminatorConfig`."""
        text = config.text_config
        if config.routing == "dense":
            mlp = 3 * text.hidden_size * text.intermediate_size
        else:
            expert = 3 * text.hidden_size * text.moe_intermediate_size
            mlp = text.num_experts_per_tok * expert + text.num_experts * text.hidden_size
        return cls._with(config, mlp, has_output=config.scoring == "likelihood")

    @classmethod
    def of_policy(cls, config: Any) -> "FlopModel":
        """Take the sizes from a dense `Qwen3VLConfig`. Its output layer reads every token."""
        text = config.text_config
        mlp = 3 * text.hidden_size * text.intermediate_size
        return cls._with(config, mlp, has_output=True)

    @classmethod
    def _with(cls, config: Any, mlp: int, has_output: bool) -> "FlopModel":
        text = config.text_config
        vision = config.vision_config
        heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads
        return cls(
            layers=text.num_hidden_layers,
            token=2 * text.hidden_size * text.head_dim * heads,
            expert_token=2 * mlp,
            pair=4 * text.num_attention_heads * text.head_dim,
            output=2 * text.hidden_size * text.vocab_size if has_output else 0,
            patch=_patch_flops(vision),
            patch_pair=4 * vision.hidden_size * vision.depth,
        )

    def image(self, patches: int) -> float:
        """Return the operations of encoding one image."""
        return self.patch * patches + self.patch_pair * patches**2

    def prompt(self, tokens: int) -> float:
        """Return the operations of the text layers on a prompt."""
        attention = self.token * tokens + self.pair * tokens**2 / 2
        return self.layers * attention + (self.layers - 1) * self.expert_token * tokens

    def span(self, prompt: int, tokens: int) -> float:
        """Return the operations of the text layers on a span after a prompt."""
        pairs = prompt * tokens + tokens**2 / 2
        attention = self.token * tokens + self.pair * pairs
        read = tokens if self.output else 1
        to_experts = (self.layers - 1) * tokens + read
        layers = self.layers * attention + self.expert_token * to_experts
        return layers + self.output * tokens

    def student(self, sizes: GroupSizes, member: int) -> float:
        """Return the operations of the spans of one student, 0 if it is invalid."""
        return sum(self.span(sizes.prompt, tokens) for tokens in sizes.students[member] or ())

    def shared(self, sizes: GroupSizes) -> float:
        """Return the operations that each part of a group repeats."""
        images = sum(map(self.image, sizes.images))
        teacher = sum(self.span(sizes.prompt, tokens) for tokens in sizes.teacher)
        return images + self.prompt(sizes.prompt) + teacher

    def part(self, sizes: GroupSizes, members: Sequence[int]) -> float:
        """Return the operations of a part of a group."""
        return self.shared(sizes) + sum(self.student(sizes, member) for member in members)


def training_factor(checkpointing: bool) -> int:
    """Return the operations of a training pass, relative to one forward pass.

    A backward pass costs two forward passes. Gradient checkpointing adds one forward pass.
    """
    return 4 if checkpointing else 3


def _patch_flops(vision: Any) -> float:
    hidden = vision.hidden_size
    layer = 2 * (4 * hidden**2 + 2 * hidden * vision.intermediate_size)
    merged = hidden * vision.spatial_merge_size**2
    merger = 2 * merged * (merged + vision.out_hidden_size) / vision.spatial_merge_size**2
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    mergers = 1 + len(vision.deepstack_visual_indexes)
    return 2 * hidden * pixels + vision.depth * layer + mergers * merger
