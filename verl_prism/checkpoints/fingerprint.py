"""The settings that decide what a stage's run becomes: those that a resumed run must have in common with its past."""

from collections.abc import Iterator
from typing import Any

from verl_prism.config import Prism, Stage

ALL_STAGES = (
    "seed",
    "reproducible",
    "steps",
    "policy",
    "data.train",
    "data.max_prompt_tokens",
    "data.max_response_tokens",
    "hardware.dtype",
)
# dataloader_workers, as the place in the data is kept for each of them.
OF_STAGE: dict[Stage, tuple[str, ...]] = {
    "sft": ("optim.", "lora.", "sft."),
    "warmup": ("rollout.temperature", "rollout.top_p", "warmup.", "discriminator."),
    "align": (
        "optim.",
        "lora.",
        "rollout.",
        "align.",
        "discriminator.",
        "hardware.dataloader_workers",
    ),
    "rlvr": (
        "optim.",
        "lora.",
        "rollout.",
        "algorithm.",
        "reward.accuracy_weight",
        "reward.format_weight",
        "reward.judge.model",
        "hardware.dataloader_workers",
    ),
    "eval": (),
}
FREE: dict[Stage, tuple[str, ...]] = {
    "sft": (),
    "warmup": (
        "discriminator.path",
        "discriminator.placement",
        "discriminator.pool_devices",
        "discriminator.updates_per_step",
        "discriminator.skip_above_accuracy",
        "discriminator.max_nonfinite",
    ),
    "align": (
        "discriminator.upcycle.",
        "discriminator.placement",
        "discriminator.pool_devices",
        "discriminator.max_nonfinite",
    ),
    "rlvr": ("algorithm.validation_", "algorithm.distillation.devices"),
    "eval": (),
}


def decisive_settings(prism: Prism) -> dict[str, Any]:
    """Full key to value. `prism.steps` is among them where the learning rate depends on it."""
    chosen, free = (*ALL_STAGES, *OF_STAGE[prism.stage]), FREE[prism.stage]
    if not _rate_depends_on_steps(prism):
        free = (*free, "steps")
    node = prism.model_dump(mode="json")
    settings = {
        key: v
        for key, v in _flat(node)
        if key.startswith(chosen) and not (free and key.startswith(free))
    }
    bytes_of_data = {"data.train, its bytes": prism.data.train.stat().st_size}
    return {f"prism.{key}": value for key, value in (settings | bytes_of_data).items()}


def ranks(prism: Prism) -> dict[str, int]:
    """The number of ranks that write each part of a checkpoint in shards of their own, keyed by the part's folder."""
    devices = prism.hardware.devices_per_node * prism.hardware.nodes
    match prism.stage:
        case "sft":
            return {".": devices}
        case "rlvr":
            return {"actor": devices}
        case "align":
            colocated = prism.discriminator.placement == "colocated"
            return {
                "actor": devices,
                "discriminator": devices if colocated else prism.discriminator.pool_devices,
            }
    return {}


def _rate_depends_on_steps(prism: Prism) -> bool:
    if prism.stage == "warmup" or prism.optim.schedule == "cosine":
        return True
    return prism.optim.warmup_steps == 0 and prism.optim.warmup_ratio > 0


def _flat(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
