"""What a training stage hands on: the policy as a Hugging Face folder, and the figures of its summary."""

import json
import os
import shutil
from pathlib import Path

from verl_prism.config import Prism

WINDOW = 10


def publish_policy(prism: Prism, part: str) -> Path:
    """`<output>/policy` from the last checkpoint, by hard links: the checkpoint stays whole.

    part: the checkpoint's subfolder that holds `huggingface/`. Small files that verl does not write (a generation
    config, say) come from the folder that the stage started from.
    """
    checkpoints = prism.output / "checkpoints"
    step = (checkpoints / "latest_checkpointed_iteration.txt").read_text().strip()
    policy = prism.output / "policy"
    shutil.copytree(checkpoints / f"global_step_{step}" / part / "huggingface", policy, copy_function=os.link)
    for file in prism.policy.iterdir():
        if file.suffix in (".json", ".jinja", ".txt") and ".index." not in file.name and not (policy / file.name).exists():
            shutil.copy(file, policy)
    return policy


def first_and_last(prism: Prism, key: str) -> tuple[float, float]:
    """Means of a metric over the first and the last WINDOW steps that report it."""
    lines = (prism.output / "metrics.jsonl").read_text().splitlines()
    values = [data[key] for data in (json.loads(line)["data"] for line in lines) if key in data]
    assert values, f"no step reported {key}"
    first, last = values[:WINDOW], values[-WINDOW:]
    return sum(first) / len(first), sum(last) / len(last)
