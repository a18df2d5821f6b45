"""Merging of LoRA adapters into the weights. verl exports both, under PEFT's names."""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PREFIX = "base_model.model."
BASE_LAYER = ".base_layer."
INDEX = "model.safetensors.index.json"


def merge_adapters(source: Path, target: Path, scale: float) -> None:
    """Write every weight W with adapters as W + scale·B·A, under its name without PEFT's parts.

    An adapter may be in another file of `source` than its weight. Memory holds the tensors of one
    file at a time.

    source: folder with the weights and adapters. target: folder for the merged weights.
    scale: alpha / rank.
    """
    files: dict[str, Path] = {}  # name of a tensor -> its file
    for file in sorted(source.glob("*.safetensors")):
        files |= dict.fromkeys(_names(file), file)
    weight_map: dict[str, str] = {}
    for file in sorted(set(files.values())):
        tensors = {}
        for name in files:
            if files[name] == file and ".lora_" not in name:
                tensors[_plain_name(name)] = _merged(name, files, scale)
        save_file(tensors, target / file.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
    if (source / INDEX).exists():
        index = {"metadata": {}, "weight_map": weight_map}
        (target / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _merged(name: str, files: dict[str, Path], scale: float) -> Tensor:
    weight = _read(files[name], name)
    if BASE_LAYER not in name:
        return weight
    name_a = name.replace("base_layer", "lora_A.default")
    name_b = name.replace("base_layer", "lora_B.default")
    adapter_a = _read(files[name_a], name_a).float()
    adapter_b = _read(files[name_b], name_b).float()
    return (weight.float() + scale * adapter_b @ adapter_a).to(weight.dtype)


def _plain_name(name: str) -> str:
    return name.removeprefix(PREFIX).replace(BASE_LAYER, ".")


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as tensors:
        return list(tensors.keys())


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(name)
