"""Read and write checkpoints that are larger than memory, tensor by tensor and shard by shard."""

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

Progress = Callable[[int, int], None]  # given the bytes done and the total bytes

MAX_SHARD_SIZE = "2GB"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING = "language_model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
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
    """A tensor that is read or computed on demand."""

    like: Tensor  # with its shape and dtype, on the meta device
    make: Callable[[], Tensor]


def read_config(folder: Path, config_class: Any) -> Any:
    """Read the config of a model folder.

    Raises:
        UserError: there is no config, or it is of another model type.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not a Hugging Face model: its config.json cannot be read ({error})"
        ) from error
    model_type = config.get("model_type")
    if model_type != config_class.model_type:
        raise UserError(f"{folder} is a {model_type}, but a {config_class.model_type} is needed")
    return config_class.from_pretrained(folder)


def discriminator_config(
    source: Any, routing: str, scoring: str, images: bool, dtype: torch.dtype, **text: Any
) -> DiscriminatorConfig:
    """Make the config of a discriminator with the towers of `source`.

    Args:
        text: changes to the text tower.
    """
    return DiscriminatorConfig(
        text_config=_tower(source.text_config) | text,
        vision_config=_tower(source.vision_config),
        image_token_id=source.image_token_id,
        video_token_id=source.video_token_id,
        vision_start_token_id=source.vision_start_token_id,
        vision_end_token_id=source.vision_end_token_id,
        tie_word_embeddings=source.tie_word_embeddings,
        routing=routing,
        scoring=scoring,
        images=images,
        dtype=dtype,
        architectures=[PrismDiscriminatorForTokenClassification.__name__],
    )


def _tower(config: Any) -> dict[str, Any]:
    fields = config.to_dict()
    return {key: value for key, value in fields.items() if key not in ("model_type", "dtype")}


def blank_tensors(model: Callable[[Any], nn.Module], config: Any) -> dict[str, Tensor]:
    """Return a model's tensors by name, on the meta device.

    Raises:
        UserError: the model cannot be built from this config.
    """
    with torch.device("meta"):
        return model(config).state_dict()


def stored_tensors(folder: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a folder's safetensors by name.

    Raises:
        UserError: there are no safetensors, a shard is missing or broken, or the shards do not
            match their index.
    """
    if (folder / WEIGHTS).exists():
        return dict(_tensors_of(folder / WEIGHTS))
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no safetensors: neither {WEIGHTS} nor {INDEX}") from error
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder / INDEX} is not an index of shards ({error!r})") from error
    files = sorted(set(index.values()))
    missing = [name for name in files if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"{folder} lacks {_some(missing)}, listed in {INDEX}; download the checkpoint again"
        )
    tensors = {name: tensor for file in files for name, tensor in _tensors_of(folder / file)}
    if tensors.keys() != index.keys():
        names = sorted(tensors.keys() ^ index.keys())
        raise UserError(
            f"{folder / INDEX} and the shards disagree on {_some(names)}; download the checkpoint "
            "again"
        )
    return tensors


def _tensors_of(path: Path) -> Iterator[tuple[str, LazyTensor]]:
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                # The file is memory-mapped, so this reads no values.
                like = torch.empty_like(file.get_tensor(name), device="meta")
                yield name, LazyTensor(like, partial(_read, path, name))
    except SafetensorError as error:
        raise UserError(
            f"{path} cannot be read ({error}); download the checkpoint again"
        ) from error


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def split_backbone(
    folder: Path, tensors: Mapping[str, LazyTensor]
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor]]:
    """Separate the tensors of the backbone from the others.

    The backbone's tensors are named `language_model.…` and `visual.…`, without any prefix such as
    `model.`. The output layer is in neither; see `output_layer`.

    Raises:
        UserError: names of the backbone have different prefixes.
    """
    backbone: dict[str, LazyTensor] = {}
    others: dict[str, LazyTensor] = {}
    prefixes: dict[str, str] = {}  # with the first name of each prefix
    for name, tensor in tensors.items():
        if match := _BACKBONE.fullmatch(name):
            prefixes.setdefault(match[1], name)
            backbone[match[2]] = tensor
        elif not _LM_HEAD.fullmatch(name):
            others[name] = tensor
    if len(prefixes) > 1:
        names = _some(list(prefixes.values()))
        raise UserError(f"{folder} contains tensors of more than one model: {names}")
    return backbone, others


def output_layer(folder: Path, tensors: Mapping[str, LazyTensor]) -> LazyTensor:
    """Return the weights of the output layer over the vocabulary.

    Raises:
        UserError: the folder has no output layer.
    """
    for name, tensor in tensors.items():
        if _LM_HEAD.fullmatch(name):
            return tensor
    raise UserError(
        f"{folder} has no {LM_HEAD}, which its config.json describes; download the checkpoint again"
    )


def require_whole(
    folder: Path, found: Mapping[str, LazyTensor], expected: Mapping[str, Tensor]
) -> None:
    """Require that the tensors in a folder are the expected ones.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    reshaped = []
    for name in sorted(found.keys() & expected):
        shape = list(found[name].like.shape)
        expected_shape = list(expected[name].shape)
        if shape != expected_shape:
            reshaped.append(f"{name} {shape}, not {expected_shape}")
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": reshaped,
    }
    texts = [f"{problem}: {_some(names)}" for problem, names in problems.items() if names]
    if texts:
        raise UserError(
            f"{folder} does not contain the tensors that its config.json describes "
            f"({'; '.join(texts)})"
        )


def write_discriminator(
    config: DiscriminatorConfig,
    tensors: Mapping[str, LazyTensor],
    source: Path,
    target: Path,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    on_progress: Progress | None = None,
) -> None:
    """Write config, tensors and the processor of `source` to `target`, one shard at a time.

    Raises:
        UserError: `target` exists and is not a discriminator, or `source` has no processor.
    """
    blank = blank_tensors(PrismDiscriminatorForTokenClassification, config)
    shapes = {name: tensor.like.shape for name, tensor in tensors.items()}
    assert shapes == {name: like.shape for name, like in blank.items()}
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
            f"{target} exists and is not a discriminator, so it is not replaced; choose another "
            "folder"
        ) from error


def _copy_processor(source: Path, folder: Path) -> None:
    """Copy the processor's files. Loading the processor would need more packages."""
    present = [name for name in PROCESSOR_FILES if (source / name).exists()]
    has_tokenizer = "tokenizer_config.json" in present
    has_processor = {"preprocessor_config.json", "processor_config.json"}.intersection(present)
    if not has_tokenizer or not has_processor:
        raise UserError(
            f"{source} has no tokenizer or no image processor; copy both from its base model"
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
    done = 0
    total = sum(tensor.like.nbytes for tensor in tensors.values())
    for filename, names in split.filename_to_tensors.items():
        shard: dict[str, Tensor] = {}
        for name in names:
            like = tensors[name].like
            shard[name] = tensors[name].make()
            assert shard[name].shape == like.shape, name
            assert shard[name].dtype == like.dtype, name
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
