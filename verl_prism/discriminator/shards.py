"""Checkpoints larger than memory: each tensor is read when it is needed, and what is written leaves shard by shard."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from verl_prism.discriminator.model import (
    DiscriminatorConfig,
    PrismDiscriminatorForTokenClassification,
)
from verl_prism.errors import UserError
from verl_prism.files import atomic_folder

Progress = Callable[[int, int], None]  # bytes made, bytes in all

MAX_SHARD_SIZE = "2GB"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PROCESSOR_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)
_BACKBONE = re.compile(r"(.*?)((?:language_model|visual)\..+)")
_LM_HEAD = re.compile(r"(.*\.)?lm_head\.weight")


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read or computed when it is asked for."""

    like: Tensor  # of its shape and dtype, on the meta device
    make: Callable[[], Tensor]


def read_config(folder: Path, config_class: Any) -> Any:
    """The folder's config.

    Raises:
        UserError: there is none, or it is of another model type.
    """
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(
            "model_type"
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no Hugging Face model: its config.json cannot be read ({error})"
        ) from error
    if model_type != config_class.model_type:
        raise UserError(
            f"{folder} holds a {model_type}, where a {config_class.model_type} is needed"
        )
    return config_class.from_pretrained(folder)


def discriminator_config(
    source: Any, routing: str, dtype: torch.dtype, **text: Any
) -> DiscriminatorConfig:
    """The config of a discriminator with the towers of `source`, and with these changes to its text tower."""
    towers = {
        name: {
            key: value
            for key, value in getattr(source, name).to_dict().items()
            if key not in ("model_type", "dtype")
        }
        for name in ("text_config", "vision_config")
    }
    return DiscriminatorConfig(
        text_config=towers["text_config"] | text,
        vision_config=towers["vision_config"],
        image_token_id=source.image_token_id,
        video_token_id=source.video_token_id,
        vision_start_token_id=source.vision_start_token_id,
        vision_end_token_id=source.vision_end_token_id,
        tie_word_embeddings=source.tie_word_embeddings,
        routing=routing,
        dtype=dtype,
        architectures=[PrismDiscriminatorForTokenClassification.__name__],
    )


def blank_tensors(model: Callable[[Any], nn.Module], config: Any) -> dict[str, Tensor]:
    """Names and shapes of a model's tensors, on the meta device.

    Raises:
        UserError: the model cannot be built from this config.
    """
    with torch.device("meta"):
        return model(config).state_dict()


def stored_tensors(folder: Path) -> dict[str, LazyTensor]:
    """The tensors of a folder's safetensors, by name.

    Raises:
        UserError: there are no safetensors, a shard is missing or broken, or the shards and their index disagree.
    """
    if (folder / WEIGHTS).exists():
        return dict(_tensors_of(folder / WEIGHTS))
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no safetensors: neither {WEIGHTS} nor {INDEX}") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / INDEX} is no index of shards ({error!r})") from error
    files = sorted(set(index.values()))
    missing = [name for name in files if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"{folder} lacks {_some(missing)}, named in {INDEX}; fetch the checkpoint again"
        )
    tensors = {name: tensor for file in files for name, tensor in _tensors_of(folder / file)}
    if tensors.keys() != index.keys():
        raise UserError(
            f"{folder / INDEX} and the shards disagree on {_some(sorted(tensors.keys() ^ index.keys()))}"
        )
    return tensors


def _tensors_of(path: Path) -> Iterator[tuple[str, LazyTensor]]:
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                # Mapped into memory: only what is used of it is read.
                yield (
                    name,
                    LazyTensor(
                        torch.empty_like(file.get_tensor(name), device="meta"),
                        partial(_read, path, name),
                    ),
                )
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); fetch the checkpoint again") from error


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def split_backbone(
    folder: Path, tensors: Mapping[str, LazyTensor]
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """The tensors of the backbone, named `language_model.…` and `visual.…`, and the others under their own names.

    What stands before the backbone's names, such as `model.`, is dropped, and so is lm_head: a discriminator has none.

    Raises:
        UserError: something else stands before some names than before others.
    """
    backbone: dict[str, LazyTensor] = {}
    others: dict[str, LazyTensor] = {}
    prefixes: dict[str, str] = {}  # to the first name that has it
    for name, tensor in tensors.items():
        if match := _BACKBONE.fullmatch(name):
            prefixes.setdefault(match[1], name)
            backbone[match[2]] = tensor
        elif not _LM_HEAD.fullmatch(name):
            others[name] = tensor
    if len(prefixes) > 1:
        raise UserError(
            f"{folder} holds tensors of more than one model: {_some(list(prefixes.values()))}"
        )
    return backbone, others


def require_whole(
    folder: Path, found: Mapping[str, LazyTensor], expected: Mapping[str, Tensor]
) -> None:
    """
    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    shapes = {
        name: (list(found[name].like.shape), list(expected[name].shape))
        for name in found.keys() & expected
    }
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": sorted(
            f"{name} {have}, not {want}" for name, (have, want) in shapes.items() if have != want
        ),
    }
    if any(faults.values()):
        named = "; ".join(f"{fault}: {_some(names)}" for fault, names in faults.items() if names)
        raise UserError(
            f"{folder} does not hold the tensors that its config.json describes ({named})"
        )


def write_discriminator(
    config: DiscriminatorConfig,
    tensors: Mapping[str, LazyTensor],
    source: Path,
    target: Path,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    on_progress: Progress | None = None,
) -> None:
    """Write config, tensors and the processor of `source` to `target`; memory holds one shard at a time.

    Raises:
        UserError: `target` holds something that is no discriminator, or `source` has no processor.
    """
    blank = blank_tensors(PrismDiscriminatorForTokenClassification, config)
    assert {name: tensor.like.shape for name, tensor in tensors.items()} == {
        n: like.shape for n, like in blank.items()
    }
    target = target.resolve()
    _require_replaceable(target)
    with atomic_folder(target) as folder:
        config.save_pretrained(folder)
        _copy_processor(source, folder)
        _write_shards(folder, tensors, max_shard_size, on_progress)


def _require_replaceable(target: Path) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        read_config(target, DiscriminatorConfig)
    except UserError as error:
        raise UserError(
            f"{target} exists and holds no discriminator; it is not replaced, name another folder"
        ) from error


def _copy_processor(source: Path, folder: Path) -> None:
    """File by file: loading a processor would need more libraries than a discriminator does."""
    present = [name for name in PROCESSOR_FILES if (source / name).exists()]
    if "tokenizer_config.json" not in present or not {
        "preprocessor_config.json",
        "processor_config.json",
    } & {*present}:
        raise UserError(
            f"{source} holds no tokenizer or no image processor; copy those of its base model into it"
        )
    for name in present:
        shutil.copy(source / name, folder)


def _write_shards(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    max_shard_size: int | str,
    on_progress: Progress | None,
) -> None:
    split = split_torch_state_dict_into_shards(
        {name: tensor.like for name, tensor in tensors.items()}, max_shard_size=max_shard_size
    )
    done, total = 0, sum(tensor.like.nbytes for tensor in tensors.values())
    for filename, names in split.filename_to_tensors.items():
        shard: dict[str, Tensor] = {}
        for name in names:
            shard[name], like = tensors[name].make(), tensors[name].like
            assert (shard[name].shape, shard[name].dtype) == (like.shape, like.dtype), name
            done += like.nbytes
            if on_progress is not None:
                on_progress(done, total)
        save_file(shard, folder / filename, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _some(names: Sequence[str], shown: int = 5) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
