"""One device: its memory, its clock, and the attention that the model uses on it."""

import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal
from unittest import mock

import torch
from torch.nn.attention import flex_attention

from verl_prism.discriminator import attention, model

Attention = Literal["flex", "blocks"]


@contextmanager
def attending(kind: Attention, device: str) -> Iterator[None]:
    """Let the model attend by FlexAttention or by SDPA blocks.

    On a CPU, FlexAttention is computed by its plain formula, with a backward pass.
    """
    with ExitStack() as stack:
        if device == "cpu":
            stack.enter_context(plain_flex_attention())
        packing = attention.flex_mask if kind == "flex" else _unchanged
        stack.enter_context(mock.patch.object(model, "packing_for", packing))
        yield


def _unchanged(layout: attention.PackLayout, device: torch.device) -> attention.PackLayout:
    return layout


@contextmanager
def plain_flex_attention() -> Iterator[None]:
    """Let FlexAttention run without a compiler, and with gradients on the CPU."""
    with (
        mock.patch.object(attention, "_flex_attention", flex_attention.flex_attention),
        mock.patch.object(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
        mock.patch.object(flex_attention, "_validate_device"),
    ):
        yield


def reset_peak(device: str) -> None:
    """Let the peak of the device's memory start again from here."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: str) -> float:
    """Return the peak of allocated device memory; on a CPU, of this process."""
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def allocated_gib(device: str) -> float:
    """Return the allocated device memory; on a CPU, the peak of this process."""
    if device == "cuda":
        return round(torch.cuda.memory_allocated() / 2**30, 2)
    return peak_gib(device)


def now(device: str) -> float:
    """Return seconds of a clock, when the device has done all its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
