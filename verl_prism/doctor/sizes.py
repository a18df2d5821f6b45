"""Sizes of a run's models, which are built from their configs on the meta device."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from verl_prism.config import Upcycle
from verl_prism.discriminator.model import (
    LIKELIHOOD_TOKENS,
    DiscriminatorConfig,
    PrismDiscriminatorForTokenClassification,
)
from verl_prism.discriminator.shards import read_config
from verl_prism.discriminator.upcycling import upcycled_config

BACKBONE = "model."
LANGUAGE_MODEL = f"{BACKBONE}language_model."
EMBEDDINGS = f"{LANGUAGE_MODEL}embed_tokens.weight"
FIRST_LAYER = f"{LANGUAGE_MODEL}layers.0."  # all layers have the same shapes
VISION = f"{BACKBONE}visual."


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters of a model, and the widths that its activations depend on.

    Attributes:
        total: Parameters of the whole model.
        embeddings: Parameters of the token embeddings.
        layer: Parameters of one layer of the language model.
        layers: Number of layers of the language model.
        head: Parameters of an untied `lm_head`, or of a discriminator's heads.
        vision: Parameters of the vision tower.
        largest: Parameters of the largest tensor.
        linear_widths: Sum of inputs and outputs over the linear maps of one language layer. A LoRA
            adapter of rank r adds r times as many parameters.
        hidden: Width of the language model.
        mlp: Inner width of the MLPs that one token passes in a layer.
        attention: Total width of queries, keys and values.
        cache: Width of the keys and values of one token in one layer.
        vocabulary: Number of rows of the embeddings.
        scored_tokens: Tokens whose logits a discriminator computes at a time; 0 if it has heads.
        vision_hidden: Width of the vision tower.
        vision_depth: Number of blocks of the vision tower.
        merged_patches: Number of image patches that become one token.
        patch_values: Numbers that an image patch is given as.
    """

    total: int
    embeddings: int
    layer: int
    layers: int
    head: int
    vision: int
    largest: int
    linear_widths: int
    hidden: int
    mlp: int
    attention: int
    cache: int
    vocabulary: int
    scored_tokens: int
    vision_hidden: int
    vision_depth: int
    merged_patches: int
    patch_values: int

    def adapters(self, rank: int) -> int:
        """Return the parameters of LoRA adapters on all linear maps of the language model."""
        return rank * self.linear_widths * self.layers


def policy_sizes(folder: Path) -> Sizes:
    """Return the sizes of the dense Qwen3-VL in `folder`.

    Raises:
        UserError: `folder` holds no config of a dense Qwen3-VL.
    """
    return sizes_of(read_config(folder, Qwen3VLConfig))


def discriminator_sizes(folder: Path) -> Sizes:
    """Return the sizes of the discriminator in `folder`.

    Raises:
        UserError: `folder` holds no config of a discriminator.
    """
    return sizes_of(read_config(folder, DiscriminatorConfig))


def upcycled_sizes(upcycle: Upcycle) -> Sizes:
    """Return the sizes of the discriminator that stage warmup will make.

    Raises:
        UserError: `upcycle.base` holds no config of a dense Qwen3-VL.
    """
    return sizes_of(upcycled(read_config(upcycle.base, Qwen3VLConfig), upcycle))


def upcycled(dense: Qwen3VLConfig, upcycle: Upcycle) -> DiscriminatorConfig:
    """Return the config of the discriminator that `upcycle` makes from a dense model."""
    return upcycled_config(
        dense,
        upcycle.experts,
        upcycle.experts_per_token,
        upcycle.routing,
        upcycle.scoring,
        upcycle.images,
        torch.float32,
    )


def sizes_of(config: Qwen3VLConfig | DiscriminatorConfig) -> Sizes:
    """Return the sizes of the model that `config` describes.

    Raises:
        UserError: the config of a discriminator contradicts itself.
    """
    shapes = _parameter_shapes(config)
    text, vision = config.text_config, config.vision_config
    layer = _below(FIRST_LAYER, shapes)
    linear = [shape for shape in layer.values() if len(shape) == 2]
    keys = layer["self_attn.k_proj.weight"][0]
    values = layer["self_attn.v_proj.weight"][0]
    total = _count(shapes)
    return Sizes(
        total=total,
        embeddings=shapes[EMBEDDINGS].numel(),
        layer=_count(layer),
        layers=text.num_hidden_layers,
        head=total - _count(_below(BACKBONE, shapes)),
        vision=_count(_below(VISION, shapes)),
        largest=max(shape.numel() for shape in shapes.values()),
        linear_widths=sum(sum(shape) for shape in linear),
        hidden=text.hidden_size,
        mlp=_mlp_width(config),
        attention=layer["self_attn.q_proj.weight"][0] + keys + values,
        cache=keys + values,
        vocabulary=text.vocab_size,
        scored_tokens=_scored_tokens(config),
        vision_hidden=vision.hidden_size,
        vision_depth=vision.depth,
        merged_patches=vision.spatial_merge_size**2,
        patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
    )


def _parameter_shapes(config: Qwen3VLConfig | DiscriminatorConfig) -> dict[str, torch.Size]:
    """Return the shape of each parameter by name. Tied parameters appear once."""
    with torch.device("meta"):
        if isinstance(config, DiscriminatorConfig):
            model = PrismDiscriminatorForTokenClassification(config)
        else:
            model = Qwen3VLForConditionalGeneration(config)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _mlp_width(config: Qwen3VLConfig | DiscriminatorConfig) -> int:
    text = config.text_config
    if isinstance(config, DiscriminatorConfig) and config.routing != "dense":
        return text.num_experts_per_tok * text.moe_intermediate_size
    return text.intermediate_size


def _scored_tokens(config: Qwen3VLConfig | DiscriminatorConfig) -> int:
    if isinstance(config, DiscriminatorConfig) and config.scoring == "likelihood":
        return LIKELIHOOD_TOKENS
    return 0


def _below(prefix: str, shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    return {
        name.removeprefix(prefix): shape
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }


def _count(shapes: Mapping[str, torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes.values())
