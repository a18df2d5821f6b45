"""How many parameters a Qwen3-VL has, and its discriminator, from config.json alone: no torch, no weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_prism.config import Upcycle


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model by part, and the widths that its activations depend on."""

    embeddings: int
    layer: int  # one of the language model's
    layers: int
    head: int  # lm_head where it is not the embeddings; a discriminator's score heads
    vision: int
    adapted: int  # inputs + outputs of a language layer's linear maps: an adapter of rank r adds r times as many
    largest: int  # of the largest tensor
    hidden: int
    mlp: int  # width of all MLPs that one token goes through
    attention: int  # width of queries, keys and values together
    cache: int  # keys and values of one token in one layer
    vocabulary: int
    vision_hidden: int
    vision_depth: int
    merged_patches: int  # that become one token

    @property
    def total(self) -> int:
        return self.embeddings + self.layer * self.layers + self.hidden + self.head + self.vision

    def adapters(self, rank: int) -> int:
        return rank * self.adapted * self.layers


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def sizes_of(config: Mapping[str, Any]) -> Sizes:
    """Of a dense Qwen3-VL, or of a discriminator with experts or without."""
    text, vision = config["text_config"], config["vision_config"]
    discriminator = config["model_type"] == "prism_discriminator"
    experts = text["num_local_experts"] if discriminator and config["routing"] != "dense" else 0
    hidden, vocabulary = text["hidden_size"], text["vocab_size"]
    queries = text["num_attention_heads"] * text["head_dim"]
    keys = text["num_key_value_heads"] * text["head_dim"]
    width = text["moe_intermediate_size"] if experts else text["intermediate_size"]
    attention = hidden * (queries + 2 * keys) + queries * hidden + 2 * text["head_dim"]
    mlp = experts * (3 * hidden * width + hidden) if experts else 3 * hidden * width
    if discriminator:
        head = hidden * (1 if config["routing"] == "token" else 2)
    else:
        head = 0 if config["tie_word_embeddings"] else vocabulary * hidden
    return Sizes(
        embeddings=vocabulary * hidden,
        layer=attention + mlp + 2 * hidden,
        layers=text["num_hidden_layers"],
        head=head,
        vision=_vision(vision),
        adapted=4 * hidden + 2 * (queries + keys) + 3 * (hidden + width),
        largest=max(vocabulary * hidden, experts * 2 * hidden * width, hidden * width),
        hidden=hidden,
        mlp=3 * width * (text["num_experts_per_tok"] if experts else 1),
        attention=queries + 2 * keys,
        cache=2 * keys,
        vocabulary=vocabulary,
        vision_hidden=vision["hidden_size"],
        vision_depth=vision["depth"],
        merged_patches=vision["spatial_merge_size"] ** 2,
    )


def _vision(config: Mapping[str, Any]) -> int:
    """Patch and position embeddings, blocks, and the mergers: one at the end, and one for each deepstack layer."""
    hidden, wide = config["hidden_size"], config["hidden_size"] * config["spatial_merge_size"] ** 2
    patch = config["in_channels"] * config["temporal_patch_size"] * config["patch_size"] ** 2
    block = (
        4 * hidden * hidden
        + 2 * hidden * config["intermediate_size"]
        + 9 * hidden
        + config["intermediate_size"]
    )
    merger = wide * wide + wide + (wide + 1) * config["out_hidden_size"]
    mergers = (merger + 2 * hidden) + len(config["deepstack_visual_indexes"]) * (merger + 2 * wide)
    return (
        hidden * (patch + 1 + config["num_position_embeddings"]) + config["depth"] * block + mergers
    )


def upcycled(dense: Mapping[str, Any], upcycle: Upcycle) -> dict[str, Any]:
    """The config of the discriminator that `upcycle` makes from a dense model with this one."""
    experts = {
        "num_local_experts": upcycle.experts,
        "num_experts_per_tok": upcycle.experts_per_token,
        "moe_intermediate_size": dense["text_config"]["intermediate_size"],
    }
    return {
        **dense,
        "model_type": "prism_discriminator",
        "routing": upcycle.routing,
        "text_config": {**dense["text_config"], **experts},
    }


def stored_parameters(folder: Path) -> int:
    """What a folder's safetensors hold, from their headers."""
    return sum(map(_parameters_in, folder.glob("*.safetensors")))


def _parameters_in(file: Path) -> int:
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(_product(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _product(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
