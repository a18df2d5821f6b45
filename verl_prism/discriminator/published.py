"""Convert the published checkpoint (`Qwen3-VL-2B-4X-Moe-warmup-120k`): token routing and one head.

Its experts have the layout of transformers 4.57, `gate_up_proj[E, h, 2f]` and `down_proj[E, f, h]`.
Each is the transpose of what later versions expect. Its head is `v_head.1.weight` in the model's
safetensors, or in `value_head.pt`, or in both.
"""

import logging
import pickle
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeModel

from verl_prism.discriminator.model import SHARED_HEAD
from verl_prism.discriminator.shards import (
    EMBEDDING,
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

HEAD = "v_head.1.weight"
HEAD_FILE = "value_head.pt"
HEAD_IN_FILE = "v_head.summary.weight"


def convert_published(
    source: str | Path,
    target: str | Path,
    *,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    on_progress: Progress | None = None,
) -> None:
    """Write the published checkpoint in `source` as a discriminator that computes the same scores.

    Experts are always read in the published layout. Their shapes do not tell the layouts apart if
    h = 2f or h = f.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape, there is no head or two that
            differ, or `target` exists and is not a discriminator.
    """
    source = Path(source)
    target = Path(target)
    published = read_config(source, Qwen3VLMoeConfig)
    tensors, others = split_backbone(source, stored_tensors(source))
    head = _head(source, others)
    blank = blank_tensors(Qwen3VLMoeModel, published)
    expected = {name: _transposed(name, tensor) for name, tensor in blank.items()}
    expected[HEAD] = torch.empty(1, published.text_config.hidden_size, device="meta")
    require_whole(source, tensors | others | {HEAD: head}, expected)
    config = discriminator_config(
        published, "token", "head", images=True, dtype=tensors[EMBEDDING].like.dtype
    )
    converted = {f"model.{name}": _converted(name, tensor) for name, tensor in tensors.items()}
    converted[f"heads.{SHARED_HEAD}.weight"] = head
    write_discriminator(config, converted, source, target, max_shard_size, on_progress)
    logger.info("converted %s to %s", source, target)


def _converted(name: str, tensor: LazyTensor) -> LazyTensor:
    return LazyTensor(_transposed(name, tensor.like), lambda: _transposed(name, tensor.make()))


def _transposed(name: str, tensor: Tensor) -> Tensor:
    """Return experts[E, m, n] as [E, n, m], and any other tensor unchanged."""
    return tensor.transpose(1, 2).contiguous() if ".mlp.experts." in name else tensor


def _head(source: Path, others: dict[str, LazyTensor]) -> LazyTensor:
    """Find the head[1, h], and remove it from `others` if it is there."""
    names = [name for name in others if f".{name}".endswith(f".{HEAD}")]
    heads = {name: others.pop(name).make() for name in names}
    heads |= _head_in_file(source / HEAD_FILE)
    if not heads:
        raise UserError(
            f"{source} has no head: neither {HEAD} in its safetensors nor a {HEAD_FILE}; download "
            "the checkpoint again"
        )
    head = next(iter(heads.values()))
    if not all(torch.equal(head.float(), other.float()) for other in heads.values()):
        raise UserError(
            f"{source} has heads that differ ({', '.join(heads)}); remove the outdated one"
        )
    return LazyTensor(torch.empty_like(head, device="meta"), lambda: head)


def _head_in_file(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        return {}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} cannot be read as tensors ({error})") from error
    if not isinstance(content, dict) or list(content) != [HEAD_IN_FILE]:
        found = list(content) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} contains {found}, but [{HEAD_IN_FILE!r}] is needed")
    return {HEAD_FILE: content[HEAD_IN_FILE]}
