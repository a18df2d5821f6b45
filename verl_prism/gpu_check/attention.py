"""FlexAttention and SDPA blocks against attention with a dense mask in fp32."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from verl_prism.discriminator.attention import (
    PackLayout,
    Segment,
    flex_mask,
    packed_attention,
)
from verl_prism.gpu_check.device import Attention, attending
from verl_prism.gpu_check.record import Options, Record

# Length of a prompt, and of its spans. FlexAttention works in blocks of 128 tokens.
GROUPS = ((300, (40, 200, 129, 1, 40)), (64, (128, 64)), (517, (33, 300)))
QUICK_GROUPS = ((140, (40, 60)), (20, (30,)))
HEADS, KEY_HEADS = 8, 2
# (dtype, dimension of a head), the configuration of real runs first
CASES = ((torch.bfloat16, 128), (torch.float32, 64))
# The largest difference of an entry, relative to the largest entry.
LIMITS = {torch.bfloat16: 5e-2, torch.float32: 1e-4}


def compare_attention(options: Options, record: Record) -> None:
    """Compare the output and the gradients of queries, keys and values."""
    segments = make_segments(QUICK_GROUPS if options.quick else GROUPS)
    record.add(tokens=segments[-1].stop, heads=HEADS, key_heads=KEY_HEADS)
    for dtype, dim in CASES:
        inputs = _inputs(segments[-1].stop, dim, dtype, options.device)
        expected = _dense(segments, *[each.detach().float().clone() for each in inputs])
        for kind in ("flex", "blocks"):
            name = f"{kind} {_name(dtype)}, head of {dim}"
            with record.part(name):
                actual = _packed(kind, segments, inputs, options.device)
                for part, error in _errors(expected, actual).items():
                    record.check(f"{name}: {part}", error, LIMITS[dtype])


def make_segments(groups: Sequence[tuple[int, Sequence[int]]]) -> list[Segment]:
    """Return the segments of a pack of groups."""
    segments: list[Segment] = []
    start = 0
    for prompt_length, spans in groups:
        prompt = Segment(start, start + prompt_length, start, start)
        segments.append(prompt)
        start = prompt.stop
        for length in spans:
            segments.append(Segment(start, start + length, prompt.start, prompt.stop))
            start += length
    return segments


def _inputs(tokens: int, dim: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Return query[1, heads, T, dim], key and value[1, key heads, T, dim], and a weight."""
    generator = torch.Generator(device).manual_seed(0)

    def random(heads: int) -> Tensor:
        values = torch.randn(1, heads, tokens, dim, device=device, generator=generator)
        return values.to(dtype)

    return [random(HEADS), random(KEY_HEADS), random(KEY_HEADS), random(HEADS).transpose(1, 2)]


def _packed(
    kind: Attention, segments: list[Segment], inputs: Sequence[Tensor], device: str
) -> list[Tensor]:
    *states, weight = inputs
    query, key, value = (each.detach().clone().requires_grad_() for each in states)
    layout = PackLayout.of(segments)
    packing = flex_mask(layout, device) if kind == "flex" else layout.to(device)
    module = torch.nn.Identity().train()
    scale = query.shape[-1] ** -0.5
    with attending(kind, device):
        output, _ = packed_attention(module, query, key, value, None, scale, packing=packing)
        gradients = torch.autograd.grad((output * weight).sum(), (query, key, value))
    return [output, *gradients]


def _dense(
    segments: list[Segment], query: Tensor, key: Tensor, value: Tensor, weight: Tensor
) -> list[Tensor]:
    for states in (query, key, value):
        states.requires_grad_()
    mask = dense_mask(segments).to(query.device)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    output = output.transpose(1, 2)
    return [output, *torch.autograd.grad((output * weight).sum(), (query, key, value))]


def dense_mask(segments: Sequence[Segment]) -> Tensor:
    """Return visible[T, T]: whether a query (row) sees a key, in the slow obvious way."""
    tokens = segments[-1].stop
    visible = torch.zeros(tokens, tokens, dtype=torch.bool)
    for segment in segments:
        visible[segment.start : segment.stop, segment.prompt_start : segment.prompt_stop] = True
        own = slice(segment.start, segment.stop)
        visible[own, own] = torch.ones(segment.length, segment.length, dtype=torch.bool).tril()
    return visible


def _errors(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> dict[str, float]:
    names = ("output", "query's gradient", "key's gradient", "value's gradient")
    errors = {}
    for name, right, ours in zip(names, expected, actual, strict=True):
        difference = (ours.float() - right).abs().max()
        errors[name] = (difference / right.abs().max()).item()
    return errors


def _name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
