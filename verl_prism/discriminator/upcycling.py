"""Sparse upcycling: a dense Qwen3-VL becomes a discriminator whose experts start as its MLP.

Without noise the result computes what the dense model computes, because the expert weights of a
token add up to 1.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor
from transformers import Qwen3VLConfig, Qwen3VLModel

from verl_prism.discriminator.model import (
    DiscriminatorConfig,
    PrismDiscriminatorForTokenClassification,
    Routing,
    Scoring,
)
from verl_prism.discriminator.shards import (
    EMBEDDING,
    LM_HEAD,
    MAX_SHARD_SIZE,
    LazyTensor,
    Progress,
    blank_tensors,
    discriminator_config,
    output_layer,
    read_config,
    require_whole,
    split_backbone,
    stored_tensors,
    write_discriminator,
)
from verl_prism.errors import UserError

logger = logging.getLogger(__name__)

EXPERT_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def upcycle(
    dense: str | Path,
    target: str | Path,
    *,
    experts: int = 4,
    experts_per_token: int = 2,
    routing: Routing = "dedicated",
    scoring: Scoring = "head",
    images: bool = True,
    noise: float = 0.0,
    seed: int = 0,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    on_progress: Progress | None = None,
) -> None:
    """Make a discriminator in `target` from the dense Qwen3-VL in `dense`, with the same dtypes.

    Memory is bounded by `max_shard_size` (or the largest tensor), not by the model. A discriminator
    that is already in `target` is replaced after the new one is complete.

    Args:
        experts: number per layer. It has no effect if routing="dense", like `experts_per_token`.
        scoring: what a score is, see `DiscriminatorConfig`.
        images: whether the discriminator sees the prompts' images.
        noise: standard deviation of the noise on each expert, relative to that of its weights.
        seed: of noise, routers and heads. A tensor's numbers depend only on it and on its name.

    Raises:
        UserError: `dense` is not a complete dense Qwen3-VL with its processor, the experts do not
            fit the routing, or `target` exists and is not a discriminator.
    """
    _check(experts, experts_per_token, routing, noise)
    dense = Path(dense)
    target = Path(target)
    source = read_config(dense, Qwen3VLConfig)
    stored = stored_tensors(dense)
    tensors, others = split_backbone(dense, stored)
    require_whole(dense, tensors | others, blank_tensors(Qwen3VLModel, source))
    dtype = tensors[EMBEDDING].like.dtype
    config = upcycled_config(source, experts, experts_per_token, routing, scoring, images, dtype)
    if scoring == "likelihood" and not source.tie_word_embeddings:
        tensors[LM_HEAD] = output_layer(dense, stored)
    std = source.text_config.initializer_range
    blank = blank_tensors(PrismDiscriminatorForTokenClassification, config)
    upcycled = {
        name: _upcycled(name, like, tensors, noise, std, seed) for name, like in blank.items()
    }
    write_discriminator(config, upcycled, dense, target, max_shard_size, on_progress)
    logger.info("upcycled %s to %s, routing %s, scoring %s", dense, target, routing, scoring)


def upcycled_config(
    dense: Qwen3VLConfig,
    experts: int,
    experts_per_token: int,
    routing: str,
    scoring: str,
    images: bool,
    dtype: torch.dtype,
) -> DiscriminatorConfig:
    """Return the config of the discriminator that `upcycle` makes from a dense Qwen3-VL."""
    text = dense.text_config
    dense_layers = list(range(text.num_hidden_layers)) if routing == "dense" else []
    return discriminator_config(
        dense,
        routing,
        scoring,
        images,
        dtype,
        num_experts=experts,
        num_experts_per_tok=experts_per_token,
        moe_intermediate_size=text.intermediate_size,
        decoder_sparse_step=1,
        mlp_only_layers=dense_layers,
    )


def _check(experts: int, experts_per_token: int, routing: str, noise: float) -> None:
    if not 1 <= experts_per_token <= experts:
        raise UserError(f"experts_per_token={experts_per_token} must be in 1 to experts={experts}")
    if noise < 0:
        raise UserError(f"noise={noise} is a standard deviation and must be 0 or more")
    if noise and routing == "dense":
        raise UserError(f"noise={noise} needs experts, and routing=dense has none: set noise=0")


def _upcycled(
    name: str, blank: Tensor, dense: Mapping[str, LazyTensor], noise: float, std: float, seed: int
) -> LazyTensor:
    """Return one of the discriminator's tensors: a copy, the experts of an MLP, or a new one.

    New are the routers and the heads.
    """
    backbone_name = name.removeprefix("model.")
    if backbone_name in dense:
        return dense[backbone_name]
    mlp, is_experts, kind = backbone_name.partition(".experts.")
    if is_experts:
        parts = [dense[f"{mlp}.{part}.weight"] for part in EXPERT_PARTS[kind]]

        def make_experts() -> Tensor:
            weights = [part.make() for part in parts]
            return _experts(weights, len(blank), noise, _generator(seed, name))

        return LazyTensor(
            _experts([part.like for part in parts], len(blank), 0.0, None), make_experts
        )
    like = blank.to(dense[EMBEDDING].like.dtype)

    def make_random() -> Tensor:
        values = torch.empty_like(like, device="cpu")
        return values.normal_(0.0, std, generator=_generator(seed, name))

    return LazyTensor(like, make_random)


def _experts(
    weights: Sequence[Tensor], experts: int, noise: float, generator: Generator | None
) -> Tensor:
    """Stack weights[., columns] to [experts, rows, columns], each expert with its own noise."""
    parts = [_noisy(weight, noise, generator) for _ in range(experts) for weight in weights]
    return torch.cat(parts).unflatten(0, (experts, -1))


def _noisy(weight: Tensor, noise: float, generator: Generator | None) -> Tensor:
    if not noise:
        return weight
    exact = weight.float()
    return (exact + noise * exact.std() * torch.randn(exact.shape, generator=generator)).to(
        weight.dtype
    )


def _generator(seed: int, name: str) -> Generator:
    """Make a tensor's own generator, so that numbers do not depend on order and sharding."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
