"""Attention over packed groups: a prompt sees itself, and a span sees its prompt and itself, causally.

Only the blocks that exist are computed, and never a mask over the whole pack. transformers' attention interface takes
the function `packed_attention` under the name "packed", so that the model's own code stays as it is.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface
from transformers.integrations.flex_attention import compile_friendly_flex_attention

logger = logging.getLogger(__name__)

PACKED = "packed"
_MOST_PADDING = 1.15  # times the scores that exist, in a block of segments of unlike length


class Segment(NamedTuple):
    """Tokens [start, stop) of a pack, which see themselves causally and the prompt's, [prompt_start, prompt_stop).

    A prompt is a segment of its own with an empty prompt before it.
    """

    start: int
    stop: int
    prompt_start: int
    prompt_stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def prompt_length(self) -> int:
        return self.prompt_stop - self.prompt_start


@dataclass(frozen=True)
class AttentionBlock:
    """n segments of like length, at most L tokens each, over g distinct prompts of at most P tokens."""

    own: Tensor  # [n, L] tokens of each segment, padded on the right with its first one
    prompts: Tensor  # [g, P] tokens of each prompt, padded likewise
    prompt_of: Tensor  # [n] index into `prompts`
    visible: Tensor | None  # [1 or n, 1, L, P + L] bool; None: causal, without a prompt

    def to(self, device: torch.device | str | int) -> "AttentionBlock":
        visible = None if self.visible is None else self.visible.to(device)
        return AttentionBlock(
            self.own.to(device), self.prompts.to(device), self.prompt_of.to(device), visible
        )


@dataclass(frozen=True)
class PackLayout:
    """Who sees whom in a pack of T tokens, as blocks."""

    segments: tuple[Segment, ...]
    blocks: tuple[AttentionBlock, ...]
    order: Tensor  # [T] where each token's output stands among those of all blocks, end to end

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "PackLayout":
        members = list(_like_length(segments))
        padded = torch.cat([_own(block).flatten() for block in members])
        real = torch.cat([_real(block).flatten() for block in members])
        order = torch.empty(int(real.sum()), dtype=torch.long)
        order[padded[real]] = real.nonzero().flatten()
        return cls(tuple(segments), tuple(_block(block) for block in members), order)

    def to(self, device: torch.device | str | int) -> "PackLayout":
        return PackLayout(
            self.segments, tuple(block.to(device) for block in self.blocks), self.order.to(device)
        )


def _like_length(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Segments of like length together, so that little is computed for padding. Prompts are apart from spans."""
    block: list[Segment] = []
    exist = 0
    for segment in sorted(segments, key=lambda s: (s.prompt_length > 0, s.length, s.prompt_length)):
        size = segment.length * (segment.prompt_length + segment.length)
        widest = max(s.prompt_length for s in [*block, segment])
        padded = (len(block) + 1) * segment.length * (widest + segment.length)
        if block and (
            padded > _MOST_PADDING * (exist + size) or (block[0].prompt_length > 0) != (widest > 0)
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
    own, prompt = _own(segments), _ranges(prompts)
    return AttentionBlock(own, prompt, prompt_of, _visible(segments, own.shape[1], prompt.shape[1]))


def _visible(segments: list[Segment], length: int, prompt_length: int) -> Tensor | None:
    """Padding on the right is after every real token, so causality hides it; only that of prompts needs hiding."""
    if prompt_length == 0:
        return None
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    prompt_lengths = torch.tensor([s.prompt_length for s in segments])
    if bool((prompt_lengths == prompt_length).all()):
        prompt_lengths = prompt_lengths[:1]
    shown = torch.arange(prompt_length) < prompt_lengths[:, None]
    shape = (len(shown), 1, length, -1)
    return torch.cat(
        [shown[:, None, None].expand(shape), causal[None, None].expand(shape)], dim=-1
    ).contiguous()


def _own(segments: list[Segment]) -> Tensor:
    return _ranges([(s.start, s.stop) for s in segments])


def _real(segments: list[Segment]) -> Tensor:
    lengths = torch.tensor([s.length for s in segments])
    return torch.arange(int(lengths.max())) < lengths[:, None]


def _ranges(ranges: Sequence[tuple[int, int]]) -> Tensor:
    """[n, longest]: the numbers of each range, and its start where it has ended."""
    starts, stops = torch.tensor(ranges).T
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
    **_,
) -> tuple[Tensor, None]:
    """From query[1, heads, T, dim] and key, value[1, key heads, T, dim] to output[1, T, heads, dim]."""
    if isinstance(packing, BlockMask):
        gqa = query.shape[1] != key.shape[1]
        output = compile_friendly_flex_attention(
            query,
            key,
            value,
            training=module.training,
            block_mask=packing,
            scale=scaling,
            enable_gqa=gqa,
        )
        return output.transpose(1, 2), None
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    return _attend_blocks(query, key, value, packing, scaling), None


def _attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, layout: PackLayout, scaling: float
) -> Tensor:
    """From query[T, heads, dim] and key, value[T, key heads, dim] to output[1, T, heads, dim]."""
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
    """[n, heads, P + L, dim]: each segment's prompt and itself."""
    own = _gather(states, block.own)
    if block.visible is None:
        return own.transpose(1, 2)
    prompts = _gather(states, block.prompts)
    prompts = (
        prompts.expand(len(own), *prompts.shape[1:])
        if len(prompts) == 1
        else _gather(prompts, block.prompt_of)
    )
    return torch.cat([prompts, own], dim=1).transpose(1, 2)


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index]; its backward pass is four times faster on CPU."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)


def packing_for(layout: PackLayout, device: torch.device) -> PackLayout | BlockMask:
    """What `packed_attention` takes: blocks for scaled_dot_product_attention, or a FlexAttention mask on CUDA."""
    if device.type == "cuda" and _flex_attention_compiles():
        return flex_mask(layout, device)
    return layout


@lru_cache
def _flex_attention_compiles() -> bool:
    from torch.utils._triton import has_triton

    if not has_triton():
        logger.warning(
            "Triton is not there, so the discriminator attends block by block instead of by FlexAttention"
        )
    return has_triton()


def flex_mask(layout: PackLayout, device: torch.device | str) -> BlockMask:
    """The same visibility for FlexAttention. Its blocks that are empty are not computed."""
    lengths = torch.tensor([segment.length for segment in layout.segments])
    ids = torch.arange(len(layout.segments)).repeat_interleave(lengths).to(device)
    prompt_start, prompt_stop = (
        torch.tensor([segment[field] for segment in layout.segments])
        .repeat_interleave(lengths)
        .to(device)
        for field in (2, 3)
    )

    def visible(batch, head, query, key):
        own = (ids[query] == ids[key]) & (key <= query)
        return own | ((key >= prompt_start[query]) & (key < prompt_stop[query]))

    tokens = len(ids)
    return create_block_mask(visible, None, None, tokens, tokens, device=device)


AttentionInterface.register(PACKED, packed_attention)
