"""The fingerprint of a run: the settings that a resumed run must share with its checkpoint."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from verl_prism.checkpoints.store import WEIGHTS, CheckpointStore
from verl_prism.config import ONLY_SAMPLE, DataFiles, Prism, Stage, flatten
from verl_prism.data.checks import model_folders
from verl_prism.data.rows import parquet_files
from verl_prism.hub_cache import hub_name
from verl_prism.run_folder import RunFolder
from verl_prism.weights import weight_files, weights_digest

ALL_STAGES = (
    "seed",
    "reproducible",
    "steps",
    "policy",
    "image",
    "data.max_prompt_tokens",
    "data.max_response_tokens",
    "data.overlong",
    "hardware.dtype",
)
# The position in the data is saved per data loader worker, so their number is included.
OF_STAGE: dict[Stage, tuple[str, ...]] = {
    "sft": ("optim", "lora", "sft"),
    "dpo": ("optim", "lora", "dpo", "sft.dataloader_workers"),
    "warmup": ("rollout.temperature", "rollout.top_p", "warmup", "discriminator"),
    "align": (
        "optim",
        "lora",
        "rollout",
        "align",
        "discriminator",
        "reward.function",
        "hardware.dataloader_workers",
    ),
    "rlvr": (
        "optim",
        "lora",
        "rollout",
        "algorithm",
        "reward.accuracy_weight",
        "reward.format_weight",
        "reward.function",
        "reward.judge.model",
        "hardware.dataloader_workers",
    ),
}
# Settings below those of OF_STAGE that may change between a checkpoint and a resumed run.
EXCLUDED: dict[Stage, tuple[str, ...]] = {
    "sft": (),
    "dpo": (),
    "warmup": (
        "discriminator.path",
        "discriminator.placement",
        "discriminator.pool_devices",
        "discriminator.micro_batch_tokens",
        "discriminator.updates_per_step",
        "discriminator.replay_share",
        "discriminator.replay_groups",
        "discriminator.restart_every",
        "discriminator.skip_above_accuracy",
        "discriminator.max_nonfinite",
    ),
    "align": (
        "discriminator.upcycle",
        "discriminator.placement",
        "discriminator.pool_devices",
        "discriminator.micro_batch_tokens",
        "discriminator.max_nonfinite",
    ),
    "rlvr": (
        "algorithm.validation_temperature",
        "algorithm.validation_top_p",
        "algorithm.distillation.devices",
    ),
}


def checkpoint_store(prism: Prism) -> CheckpointStore:
    """Return the store of a run's checkpoints."""
    return CheckpointStore(
        RunFolder(prism.output), fingerprint(prism), world_sizes(prism), prism.keep_checkpoints
    )


def fingerprint(prism: Prism) -> dict[str, Any]:
    """Return full key -> value. Stages sample and eval save no checkpoints and have none.

    A model from the Hub is `org/name@commit`, wherever its folder is. Other models are folders, and
    a digest of the weights in them.
    `prism.steps` is included only if the learning rate depends on it.
    """
    if prism.stage in ONLY_SAMPLE:
        return {}
    included = (*ALL_STAGES, *OF_STAGE[prism.stage])
    excluded = EXCLUDED[prism.stage]
    if not _learning_rate_depends_on_steps(prism):
        excluded = (*excluded, "steps")
    settings = {}
    for key, value in flatten(prism.model_dump(mode="json")):
        if _covers(included, key) and not _covers(excluded, key):
            settings[f"prism.{key}"] = hub_name(Path(str(value))) or value
    return settings | _weights(prism) | _training_data(prism.data.train)


def _covers(names: Iterable[str], key: str) -> bool:
    """Return whether `names` has the key, or a node that contains it."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _weights(prism: Prism) -> dict[str, str]:
    """Return a digest of each model that is not from the Hub and has weights."""
    digests = {}
    for key, folder in model_folders(prism).items():
        if weight_files(folder) and hub_name(folder) is None:
            digests[key + WEIGHTS] = weights_digest(folder)
    return digests


def _training_data(source: DataFiles) -> dict[str, Any]:
    files = parquet_files("prism.data.train", source)
    return {
        "prism.data.train": str(source) if isinstance(source, Path) else list(map(str, source)),
        "prism.data.train, its bytes": sum(file.stat().st_size for file in files),
    }


def world_sizes(prism: Prism) -> dict[str, int]:
    """Return the number of ranks that save each part of a checkpoint, by the part's subfolder.

    Stage warmup is not included: its checkpoints load with any number of ranks.
    """
    devices = prism.hardware.devices_per_node * prism.hardware.nodes
    match prism.stage:
        case "sft" | "dpo":
            return {".": devices}
        case "rlvr":
            return {"actor": devices}
        case "align" if prism.discriminator.placement == "pool":
            return {"actor": devices, "discriminator": prism.discriminator.pool_devices}
        case "align":
            return {"actor": devices, "discriminator": devices}
    return {}


def _learning_rate_depends_on_steps(prism: Prism) -> bool:
    if prism.stage == "warmup" or prism.optim.schedule == "cosine":
        return True
    return prism.optim.warmup_steps == 0 and prism.optim.warmup_ratio > 0
