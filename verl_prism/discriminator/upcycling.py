"""Sparse upcycling: a dense Qwen3-VL becomes a discriminator whose experts all start as its MLP.

Without noise the result computes what the dense model computes: a token's expert weights add up to one.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor
from transformers import Qwen3VLConfig, Qwen3VLModel

from verl_prism.discriminator.model import PrismDiscriminatorForTokenClassification, Routing
from verl_prism.discriminator.shards import (
    MAX_SHARD_SIZE,
    LazyTensor,
    Progress,
    blank_tensors,
    discriminator_config,
    read_config,
    require_whole,
    split_backbone,
    stored_tensors,
    write_discriminator,
)
from verl_prism.errors import UserError

logger = logging.getLogger(__name__)

EMBEDDING = "language_model.embed_tokens.weight"
EXPERT_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def upcycle(
    dense: str | Path,
    target: str | Path,
    *,
    experts: int = 4,
    experts_per_token: int = 2,
    routing: Routing = "dedicated",
    noise: float = 0.0,
    seed: int = 0,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    on_progress: Progress | None = None,
) -> None:
    """Write a discriminator to `target`, made from the dense Qwen3-VL in `dense`, whose dtypes it keeps.

    Memory is bounded by `max_shard_size` (or the largest tensor), not by the model. A discriminator that is already in
    `target` is replaced, once the new one is whole.

    Args:
        experts: per layer; with experts_per_token without meaning where routing="dense".
        noise: standard deviation of the noise on each expert, relative to that of the weight it is added to.
        seed: of the noise, the routers and the heads. Each tensor's numbers follow from it and from the tensor's name.
    Raises:
        UserError: `dense` is no whole dense Qwen3-VL with its processor, the experts cannot be split as `routing`
            wants, or `target` holds something else.
    """
    _check(experts, experts_per_token, routing, noise)
    dense, target = Path(dense), Path(target)
    source = read_config(dense, Qwen3VLConfig)
    tensors, others = split_backbone(dense, stored_tensors(dense))
    require_whole(dense, tensors | others, blank_tensors(Qwen3VLModel, source))
    layers = source.text_config.num_hidden_layers
    config = discriminator_config(
        source,
        routing,
        tensors[EMBEDDING].like.dtype,
        num_experts=experts,
        num_experts_per_tok=experts_per_token,
        moe_intermediate_size=source.text_config.intermediate_size,
        decoder_sparse_step=1,
        mlp_only_layers=list(range(layers)) if routing == "dense" else [],
    )
    std = source.text_config.initializer_range
    upcycled = {
        name: _upcycled(name, blank, tensors, noise, std, seed)
        for name, blank in blank_tensors(PrismDiscriminatorForTokenClassification, config).items()
    }
    write_discriminator(config, upcycled, dense, target, max_shard_size, on_progress)
    logger.info("upcycled %s to %s, routing %s", dense, target, routing)


def _check(experts: int, experts_per_token: int, routing: str, noise: float) -> None:
    if not 1 <= experts_per_token <= experts:
        raise UserError(f"experts_per_token is {experts_per_token}, of {experts} experts")
    if noise < 0:
        raise UserError(f"noise is {noise}; it is a standard deviation, 0 or more")
    if noise and routing == "dense":
        raise UserError(
            f"noise is {noise}, but with dense routing there are no experts to add it to"
        )


def _upcycled(
    name: str, blank: Tensor, dense: Mapping[str, LazyTensor], noise: float, std: float, seed: int
) -> LazyTensor:
    """The discriminator's tensor of this name and shape: a copy, experts made of an MLP, or a new router or head."""
    backbone_name = name.removeprefix("model.")
    if backbone_name in dense:
        return dense[backbone_name]
    mlp, is_experts, kind = backbone_name.partition(".experts.")
    if is_experts:
        parts = [dense[f"{mlp}.{part}.weight"] for part in EXPERT_PARTS[kind]]
        return LazyTensor(
            _experts([part.like for part in parts], len(blank), 0.0, None),
            lambda: _experts(
                [part.make() for part in parts], len(blank), noise, _generator(seed, name)
            ),
        )
    like = blank.to(dense[EMBEDDING].like.dtype)
    return LazyTensor(
        like,
        lambda: torch.empty_like(like, device="cpu").normal_(
            0.0, std, generator=_generator(seed, name)
        ),
    )


def _experts(
    weights: Sequence[Tensor], experts: int, noise: float, generator: Generator | None
) -> Tensor:
    """[experts, rows, columns]: the weights[., columns] on top of one another, for each expert with its own noise."""
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
    """Of a tensor's own, so that neither the order nor the sharding of tensors changes a number."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
