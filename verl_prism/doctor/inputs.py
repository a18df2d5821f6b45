"""Check the models and the data that the run starts from, and the sizes of its batches."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_prism.config import Prism
from verl_prism.data.checks import (
    check_division,
    check_longest,
    check_number_of_rows,
    model_folders,
    summary,
)
from verl_prism.data.images import image_processor
from verl_prism.doctor.finding import Case, Finding, error, ok, warning

# How an image is cut into patches: name in a model's config, name in its image processor.
PATCHING = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "spatial_merge_size": "merge_size",
}


def check_models_and_data(case: Case) -> Iterator[Finding]:
    """Run the checks of `python -m verl_prism.main --check`.

    Raises:
        UserError: the first mistake in a model folder or data file.
    """
    yield ok(summary(case.prism, case.inputs))


def check_image_patches(case: Case) -> Iterator[Finding]:
    """Check that all models and their image processors cut images into the same patches.

    The discriminator gets the policy's image tensors.
    """
    folders = model_folders(case.prism)
    visions = {key: _vision_config(folder) for key, folder in folders.items()}
    for key, folder in folders.items():
        yield from _check_image_processor(key, folder, visions[key])
    first, *others = folders
    vision = visions[first]
    for other in others:
        differing = [name for name in PATCHING if vision[name] != visions[other][name]]
        if differing:
            yield error(
                f"{other}={folders[other]} and {first}={folders[first]} cut images differently: "
                f"{', '.join(differing)}",
                "start both from models of one family",
            )
    patch_size = vision["patch_size"]
    expected = case.prism.model.image_patch_size
    if case.on_ray and patch_size != expected:
        yield error(
            f"{first}={folders[first]} has patches of {patch_size} pixels, not {expected}",
            f"set prism.model.image_patch_size={patch_size}, or choose another model=",
        )
    yield ok(f"patches of {patch_size} pixels, {vision['spatial_merge_size']}² patches per token")


def _check_image_processor(key: str, folder: Path, vision: dict[str, Any]) -> Iterator[Finding]:
    processor = image_processor(folder)
    for name, processor_name in PATCHING.items():
        if vision[name] != processor[processor_name]:
            yield error(
                f"{key}={folder}: {name} is {vision[name]} in config.json, "
                f"{processor[processor_name]} in its image processor",
                "copy the image processor of its base model into the folder",
            )


def _vision_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["vision_config"]


def check_batches(case: Case) -> Iterator[Finding]:
    """Check that batches divide among devices, and that the longest sequence fits into one pass.

    Raises:
        UserError: a step does not divide among the devices, or a sequence does not fit.
    """
    prism = case.prism
    check_longest(prism)
    check_division(prism)
    ranks = prism.hardware.devices_per_node * prism.hardware.nodes
    if case.on_ray:
        mini_batch_prompts = case.config.actor_rollout_ref.actor.ppo_mini_batch_size
        yield from _check_mini_batches(prism, mini_batch_prompts, ranks)
    yield ok("1 device" if ranks == 1 else f"{ranks} devices")


def _check_mini_batches(prism: Prism, mini_batch_prompts: int, ranks: int) -> Iterator[Finding]:
    samples = prism.rollout.samples_per_prompt
    batch = prism.rollout.prompts_per_step * samples
    mini_batch = mini_batch_prompts * samples
    if batch % mini_batch or mini_batch % ranks:
        yield error(
            f"{batch} responses per step, {mini_batch} per update, {ranks} devices: "
            "each number must divide the one before",
            "adjust actor_rollout_ref.actor.ppo_mini_batch_size",
        )


def check_rows(case: Case) -> Iterator[Finding]:
    """Check that the training data fills a step. If not, verl would draw forever.

    Raises:
        UserError: it does not.
    """
    if case.has_wrong_inputs:  # the check of models and data says so
        return
    check_number_of_rows(case.prism, case.inputs)
    rows, prompts = case.inputs.train_rows, case.prism.warmup.prompts
    if rows is None:
        yield ok("no training data needed")
        return
    if case.prism.stage == "warmup" and rows < prompts:
        yield warning(
            f"prism.data.train has {rows} rows; all of them are used instead of "
            f"prism.warmup.prompts={prompts}",
            f"add rows, or set prism.warmup.prompts={rows}",
        )
    yield ok(f"{rows} rows")


def check_weight_bucket(case: Case) -> Iterator[Finding]:
    """Check that the largest tensor, in float32, fits into the bucket for weight transfer to vLLM.

    On a GPU a larger tensor bypasses the bucket.
    """
    if not case.on_ray:
        yield ok("no weights are sent to vLLM")
        return
    hardware = case.prism.hardware
    largest_mib = -(-4 * case.policy.largest // 2**20)  # rounded up
    if largest_mib > hardware.weight_bucket_mib:
        finding = error if hardware.device == "cpu" else warning
        yield finding(
            f"the policy's largest tensor has {largest_mib} MiB, "
            f"more than prism.hardware.weight_bucket_mib={hardware.weight_bucket_mib}",
            f"set prism.hardware.weight_bucket_mib={largest_mib}",
        )
    yield ok(f"largest tensor: {largest_mib} MiB")
