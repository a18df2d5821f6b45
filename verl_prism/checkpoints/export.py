"""Export of a trained part, policy or discriminator, as a Hugging Face folder."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from verl_prism.checkpoints.merge_lora import merge_adapters
from verl_prism.checkpoints.model_card import ModelCard
from verl_prism.config import Lora
from verl_prism.files import atomic_folder, link_or_copy

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
COPIED = (".json", ".jinja", ".txt")


def export_part(
    trained: Path, base: Path, target: Path, card: ModelCard, lora: Lora | None = None
) -> None:
    """Export a part of a checkpoint to `target`. Weights are linked unless adapters are merged.

    trained: the part's folder in the checkpoint; it contains `huggingface/`.
    base: the folder that training started from. Small files that verl does not save, such as a
        generation config, are copied from there.
    lora: settings of the adapters to merge, if any.
    """
    source = trained / "huggingface"
    with atomic_folder(target) as folder:
        if lora and lora.rank:
            ignore = shutil.ignore_patterns("*.safetensors")
            shutil.copytree(source, folder, ignore=ignore, dirs_exist_ok=True)
            merge_adapters(source, folder, lora.alpha / lora.rank)
        else:
            shutil.copytree(source, folder, copy_function=_link_weights, dirs_exist_ok=True)
        _copy_small_files(base, folder)
        _correct_config(folder)
        card.write(folder)


def _link_weights(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        link_or_copy(source, target)
    else:
        shutil.copy2(source, target)


def _copy_small_files(base: Path, folder: Path) -> None:
    for file in base.iterdir():
        small = file.suffix in COPIED and not file.name.endswith(".index.json")
        if small and not (folder / file.name).exists():
            shutil.copy(file, folder)


def _correct_config(folder: Path) -> None:
    """Set the stored dtype, and remove the attention kernel of the training host.

    verl always writes bfloat16.
    """
    with safe_open(next(folder.glob("*.safetensors")), framework="np") as weights:
        stored = weights.get_slice(next(iter(weights.keys()))).get_dtype()
    file = folder / "config.json"
    config = _corrected(json.loads(file.read_text()), DTYPES[stored])
    file.write_text(json.dumps(config, indent=2) + "\n")


def _corrected(node: dict[str, Any], dtype: str) -> dict[str, Any]:
    result = {}
    for key, value in node.items():
        if key == "attn_implementation":
            continue
        if key == "dtype":
            value = dtype
        elif isinstance(value, dict):
            value = _corrected(value, dtype)
        result[key] = value
    return result
