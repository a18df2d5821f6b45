"""What a training stage hands on: policy and discriminator as Hugging Face folders, whole or not there."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from verl_prism.checkpoints.merge_lora import merge_adapters
from verl_prism.checkpoints.model_card import Part, write_card
from verl_prism.config import Prism
from verl_prism.files import atomic_folder


def publish_part(
    prism: Prism, part: Part, trained: Path, figures: Mapping[str, float | str]
) -> None:
    """Makes `<output>/<part>` from a checkpoint, which stays whole; no weight is copied.

    trained: the checkpoint's folder that holds `huggingface/`. Small files that verl does not write (a generation
    config, say) come from the folder that the stage started from.
    """
    base = prism.policy if part == "policy" else prism.discriminator.path
    with atomic_folder(prism.output / part) as folder:
        shutil.copytree(
            trained / "huggingface", folder, copy_function=_link_weights, dirs_exist_ok=True
        )
        for file in base.iterdir():
            small = file.suffix in (".json", ".jinja", ".txt") and not file.name.endswith(
                ".index.json"
            )
            if small and not (folder / file.name).exists():
                shutil.copy(file, folder)
        if part == "policy" and prism.lora.rank:
            merge_adapters(folder, prism.lora.alpha / prism.lora.rank)
        _correct_config(folder)
        write_card(folder, prism, part, base, figures)


def _link_weights(source: str, target: str) -> None:
    (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)


def _correct_config(folder: Path) -> None:
    """verl declares bfloat16 whatever the weights are, and keeps the attention kernel of the training host."""
    with safe_open(next(folder.glob("*.safetensors")), framework="np") as weights:
        stored = weights.get_slice(next(iter(weights.keys()))).get_dtype()
    dtype = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[stored]

    def corrected(node: dict[str, Any]) -> dict[str, Any]:
        node = {key: value for key, value in node.items() if key != "attn_implementation"}
        node = {
            key: corrected(value) if isinstance(value, dict) else value
            for key, value in node.items()
        }
        return node | {"dtype": dtype} if "dtype" in node else node

    file = folder / "config.json"
    file.write_text(json.dumps(corrected(json.loads(file.read_text())), indent=2) + "\n")
