"""Causal attention over packed groups: a prompt sees itself, a span sees its prompt and itself.

Only the blocks that exist are computed, without a mask over the whole pack: by FlexAttention on
CUDA, and elsewhere by one call of SDPA for each block of similar segments. The function
`packed_attention` is registered with transformers' attention interface under the name "packed", so
the model's own code stays unchanged.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface

logger = logging.getLogger(__name__)

PACKED = "packed"
CPU = torch.device("cpu")
FLEX_BLOCK = 128  # side in tokens of FlexAttention's blocks
_MAX_PADDING = 1.15  # computed attention scores of a block, relative to those without padding

# The number of tokens changes with each pack. With dynamic shapes, one kernel serves all lengths;
# otherwise each new length would be compiled. `flex_mask` pads packs to whole blocks, because a
# length that is not a multiple of the block needs a second, slower kernel. With fullgraph, too many
# compilations are an error; otherwise torch would go on without a kernel, with scores of [T, T].
_flex_attention = torch.compile(flex_attention, dynamic=True, fullgraph=True)


class Segment(NamedTuple):
    """Tokens [start, stop) of a pack. They see themselves, causally, and their prompt.

    The prompt's tokens are [prompt_start, prompt_stop). A prompt is a segment with an empty prompt.
    """

    start: int
    stop: int
    prompt_start: int
    prompt_stop: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.stop - self.start

    @property
    def prompt_length(self) -> int:
        """Number of tokens of the prompt, 0 if the segment is a prompt itself."""
        return self.prompt_stop - self.prompt_start


@dataclass(frozen=True)
class AttentionBlock:
    """n segments of similar length, up to L tokens, with g distinct prompts of up to P tokens."""

    own: Tensor  # [n, L] token indices of each segment, padded on the right with the first one
    prompts: Tensor  # [g, P] token indices of each prompt, padded in the same way
    prompt_of: Tensor  # [n] index into `prompts`
    visible: Tensor | None  # [1 or n, 1, L, P + L] bool; None: causal, without a prompt

    def to(self, device: torch.device | str | int) -> "AttentionBlock":
        """Copy the tensors to a device."""
        visible = None if self.visible is None else self.visible.to(device)
        prompts = self.prompts.to(device)
        return AttentionBlock(self.own.to(device), prompts, self.prompt_of.to(device), visible)


@dataclass(frozen=True)
class PackLayout:
    """Which tokens of a pack of T tokens see which.

    The blocks are built on first use. FlexAttention does without them.
    """

    segments: tuple[Segment, ...]
    device: torch.device = CPU  # of the blocks

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "PackLayout":
        """Make the layout of segments that follow each other without a gap."""
        return cls(tuple(segments))

    def to(self, device: torch.device | str | int) -> "PackLayout":
        """Return the layout with its blocks on a device."""
        device = torch.device(device)
        return self if device == self.device else PackLayout(self.segments, device)

    @cached_property
    def blocks(self) -> tuple[AttentionBlock, ...]:
        """The segments, divided into blocks of similar lengths."""
        return tuple(_block(members).to(self.device) for members in self._divided)

    @cached_property
    def order(self) -> Tensor:
        """Index [T] of each token's output in the concatenated outputs of all blocks."""
        padded = torch.cat([_own(members).flatten() for members in self._divided])
        real = torch.cat([_real(members).flatten() for members in self._divided])
        order = torch.empty(int(real.sum()), dtype=torch.long)
        order[padded[real]] = real.nonzero().flatten()
        return order.to(self.device)

    @cached_property
    def _divided(self) -> list[list[Segment]]:
        return list(_similar_lengths(self.segments))


def _similar_lengths(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Divide segments so that little is computed for padding. Prompts are separate from spans."""
    block: list[Segment] = []
    exist = 0
    for segment in sorted(segments, key=lambda s: (s.prompt_length > 0, s.length, s.prompt_length)):
        size = segment.length * (segment.prompt_length + segment.length)
        widest = max(s.prompt_length for s in [*block, segment])
        padded = (len(block) + 1) * segment.length * (widest + segment.length)
        if block and (
            padded > _MAX_PADDING * (exist + size) or (block[0].prompt_length > 0) != (widest > 0)
        ):
            yield block
            block, exist = [], 0
        block.append(segment)
        exist += size
    if block:
        yield block


def _block(segments: list[Segment]) -> AttentionBlock:
    prompts = sorted({(s.prompt_start, s.prompt_stop) for s in segments})
    prompt_of = torch.tensor([prompts.index((s.prompt_start, s.prompt_stop)) for s in segments])
    own = _own(segments)
    prompt = _ranges(prompts)
    return AttentionBlock(own, prompt, prompt_of, _visible(segments, own.shape[1], prompt.shape[1]))


def _visible(segments: list[Segment], length: int, prompt_length: int) -> Tensor | None:
    """Return the mask of a block, [1 or n, 1, L, P + L], or None without prompts.

    It hides the padding of prompts. The padding of segments is to the right of every real token,
    where causality hides it.
    """
    if prompt_length == 0:
        return None
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    prompt_lengths = torch.tensor([s.prompt_length for s in segments])
    if bool((prompt_lengths == prompt_length).all()):
        prompt_lengths = prompt_lengths[:1]
    shown = torch.arange(prompt_length) < prompt_lengths[:, None]
    shape = (len(shown), 1, length, -1)
    parts = [shown[:, None, None].expand(shape), causal[None, None].expand(shape)]
    return torch.cat(parts, dim=-1).contiguous()


def _own(segments: list[Segment]) -> Tensor:
    return _ranges([(s.start, s.stop) for s in segments])


def _real(segments: list[Segment]) -> Tensor:
    lengths = torch.tensor([s.length for s in segments])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def _ranges(ranges: Sequence[tuple[int, int]]) -> Tensor:
    """Return the numbers [n, longest] of each range, padded with its start."""
    starts, stops = torch.tensor(ranges).unbind(1)
    steps = torch.arange(int((stops - starts).max()))
    return starts[:, None] + torch.where(steps < (stops - starts)[:, None], steps, 0)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    packing: PackLayout | BlockMask,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within a pack, under the interface of transformers' attention functions.

    Args:
        query: [1, heads, T, dim].
        key: [1, key heads, T, dim].
        value: [1, key heads, T, dim].

    Returns:
        output[1, T, heads, dim], and None instead of attention weights.
    """
    if isinstance(packing, BlockMask):
        return _attend_flex(query, key, value, packing, scaling), None
    query = query[0].transpose(0, 1)
    key = key[0].transpose(0, 1)
    value = value[0].transpose(0, 1)
    return _attend_blocks(query, key, value, packing, scaling), None


def _attend_flex(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float
) -> Tensor:
    """Return output[1, T, heads, dim] of query[1, heads, T, dim]; see `packed_attention`."""
    tokens = query.shape[2]
    padding = (0, 0, 0, mask.shape[-1] - tokens)
    output = _flex_attention(
        F.pad(query, padding),
        F.pad(key, padding),
        F.pad(value, padding),
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[:, :, :tokens].transpose(1, 2)


def _attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, layout: PackLayout, scaling: float
) -> Tensor:
    """Return output[1, T, heads, dim] of query[T, heads, dim], key and value[T, key heads, dim]."""
    outputs = []
    for block in layout.blocks:
        output = F.scaled_dot_product_attention(
            _gather(query, block.own).transpose(1, 2),
            _keys(key, block),
            _keys(value, block),
            attn_mask=block.visible,
            is_causal=block.visible is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return _gather(torch.cat(outputs), layout.order)[None]


def _keys(states: Tensor, block: AttentionBlock) -> Tensor:
    """Return [n, heads, P + L, dim]: the states of each segment's prompt and of itself."""
    own = _gather(states, block.own)
    if block.visible is None:
        return own.transpose(1, 2)
    prompts = _gather(states, block.prompts)
    if len(prompts) == 1:
        prompts = prompts.expand(len(own), *prompts.shape[1:])
    else:
        prompts = _gather(prompts, block.prompt_of)
    return torch.cat([prompts, own], dim=1).transpose(1, 2)


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """Return rows[index], with a backward pass that is four times faster on CPU."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)


def packing_for(layout: PackLayout, device: torch.device) -> PackLayout | BlockMask:
    """Return the packing for `packed_attention`: blocks, or a FlexAttention mask on CUDA."""
    if device.type == "cuda" and _flex_attention_compiles():
        return flex_mask(layout, device)
    return layout


@lru_cache
def _flex_attention_compiles() -> bool:
    """Return whether FlexAttention runs as a kernel. Without one it would need [T, T] scores."""
    from torch.utils._triton import has_triton

    compiles = has_triton() and not torch._dynamo.config.disable
    if not compiles:
        logger.warning(
            "Triton is missing, or TORCH_COMPILE_DISABLE is set: the discriminator attends block "
            "by block, without FlexAttention"
        )
    return compiles


def flex_mask(layout: PackLayout, device: torch.device | str) -> BlockMask:
    """Return the mask of a layout for FlexAttention, padded to whole blocks of tokens.

    Visible pairs are counted per block from the ends of the segments, so there is no mask of
    [T, T], and nothing to compile. The padding is a segment of its own, which no other token sees.
    """
    segments = list(layout.segments)
    tokens = segments[-1].stop
    padded = -(-tokens // FLEX_BLOCK) * FLEX_BLOCK
    if padded > tokens:
        segments.append(Segment(tokens, padded, tokens, tokens))
    lengths = torch.tensor([segment.length for segment in segments])
    bounds = torch.tensor(segments, dtype=torch.int32).repeat_interleave(lengths, dim=0).to(device)
    start, _, prompt_start, prompt_stop = bounds.unbind(1)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (key >= start[query]) & (key <= query)
        return own | ((key >= prompt_start[query]) & (key < prompt_stop[query]))

    own_stop = torch.arange(1, padded + 1, dtype=torch.int32, device=device)
    own_pairs = _pairs_per_block(start, own_stop)
    pairs = own_pairs + _pairs_per_block(prompt_start, prompt_stop)
    full = pairs == FLEX_BLOCK**2
    partial = (pairs > 0) & ~full
    return BlockMask.from_kv_blocks(
        *_listed(partial),
        *_listed(full),
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=visible,
        seq_lengths=(padded, padded),
    )


def _pairs_per_block(starts: Tensor, stops: Tensor) -> Tensor:
    """Return [B, B], the pairs of each block if query i sees the keys in [starts[i], stops[i]).

    The counts per query, [T, B], take 0.4 GB of int32 each for a pack of 114,688 tokens.
    """
    blocks = len(starts) // FLEX_BLOCK
    edges = FLEX_BLOCK * torch.arange(blocks, dtype=torch.int32, device=starts.device)
    first = torch.maximum(starts[:, None], edges)
    seen = torch.minimum(stops[:, None], edges + FLEX_BLOCK)
    seen.sub_(first).clamp_(min=0)
    return seen.unflatten(0, (blocks, FLEX_BLOCK)).sum(1, dtype=torch.int32)


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return counts[1, 1, B] and indices[1, 1, B, B] of the chosen[B, B] key blocks of each row."""
    order = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1).int()[None, None], order.int()[None, None]


AttentionInterface.register(PACKED, packed_attention)
