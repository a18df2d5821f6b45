"""Adapters merged into the weights that they were trained beside. verl exports both under PEFT's names."""

import json
import os
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

PREFIX, BESIDE = "base_model.model.", ".base_layer."
INDEX = "model.safetensors.index.json"


def merge_adapters(folder: Path, scale: float) -> None:
    """Every W with adapters becomes W + scale·B·A, under its own name; memory holds one file's tensors at a time.

    scale: alpha / rank. Files are replaced, never written into: they may be links to a checkpoint's. None is replaced
    before all are merged: an adapter may stand in another file than its weight.
    """
    files = {name: file for file in sorted(folder.glob("*.safetensors")) for name in _names(file)}
    kept: dict[str, str] = {}
    for file in sorted(set(files.values())):
        tensors = {
            _own_name(name): _merged(name, files, scale)
            for name in files
            if files[name] == file and ".lora_" not in name
        }
        save_file(tensors, _aside(file), metadata={"format": "pt"})
        kept |= dict.fromkeys(tensors, file.name)
    for file in set(files.values()):
        os.replace(_aside(file), file)
    if (folder / INDEX).exists():
        (folder / INDEX).write_text(
            json.dumps({"metadata": {}, "weight_map": kept}, indent=2), encoding="utf-8"
        )


def _aside(file: Path) -> Path:
    return file.with_suffix(".unfinished")


def _merged(name: str, files: dict[str, Path], scale: float) -> Tensor:
    weight = _read(files[name], name)
    if BESIDE not in name:
        return weight
    sides = [name.replace("base_layer", f"lora_{side}.default") for side in "AB"]
    down, up = (_read(files[side], side).float() for side in sides)
    return (weight.float() + scale * up @ down).to(weight.dtype)


def _own_name(name: str) -> str:
    return name.removeprefix(PREFIX).replace(BESIDE, ".")


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as tensors:
        return list(tensors.keys())


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(name)
