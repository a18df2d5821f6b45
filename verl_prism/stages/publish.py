"""What a training stage hands on: the policy as a Hugging Face folder."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from verl_prism.config import Prism
from verl_prism.files import written_aside


def publish_policy(prism: Prism, part: Path) -> Path:
    """Makes `<output>/policy` from a checkpoint, which stays whole; no weight is copied.

    part: the checkpoint's folder that holds `huggingface/`. Small files that verl does not write (a generation
    config, say) come from the folder that the stage started from.
    """
    target = prism.output / "policy"
    with written_aside(target) as policy:
        shutil.copytree(part / "huggingface", policy, copy_function=_link_weights, dirs_exist_ok=True)
        for file in prism.policy.iterdir():
            small = file.suffix in (".json", ".jinja", ".txt") and not file.name.endswith(".index.json")
            if small and not (policy / file.name).exists():
                shutil.copy(file, policy)
        _correct_config(policy)
    return target


def _link_weights(source: str, target: str) -> None:
    (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)


def _correct_config(policy: Path) -> None:
    """verl declares bfloat16 whatever the weights are, and keeps the attention kernel of the training host."""
    with safe_open(next(policy.glob("*.safetensors")), framework="np") as weights:
        stored = weights.get_slice(next(iter(weights.keys()))).get_dtype()
    dtype = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[stored]

    def corrected(node: dict[str, Any]) -> dict[str, Any]:
        node = {key: value for key, value in node.items() if key != "attn_implementation"}
        node = {key: corrected(value) if isinstance(value, dict) else value for key, value in node.items()}
        return node | {"dtype": dtype} if "dtype" in node else node

    file = policy / "config.json"
    file.write_text(json.dumps(corrected(json.loads(file.read_text())), indent=2) + "\n")
