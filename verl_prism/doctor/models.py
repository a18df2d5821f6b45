"""The models and the data that the run starts from, and the sizes of its batches."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from verl_prism.config import Prism
from verl_prism.data.checks import check_files, data_files, model_folders
from verl_prism.doctor.finding import Case, Finding, fault, ok, warning
from verl_prism.doctor.sizes import Sizes, read_config, sizes_of, stored_parameters, upcycled

PATCHING = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "spatial_merge_size": "merge_size",
}


def inputs(case: Case) -> Iterator[Finding]:
    """The first mistake that `python -m verl_prism.main --check` would find; its message says how to mend it."""
    check_files(case.prism)
    yield ok(", ".join(str(folder) for folder in model_folders(case.prism).values()))


def patching(case: Case) -> Iterator[Finding]:
    """A model cuts images as its processor does, and the discriminator as the policy, whose images it is given."""
    seen = {
        key: (folder, read_config(folder)["vision_config"])
        for key, folder in model_folders(case.prism).items()
    }
    for key, (folder, vision) in seen.items():
        processor = _image_processor(folder)
        for name, in_processor in PATCHING.items():
            if vision[name] != processor[in_processor]:
                yield fault(
                    f"{key}={folder}: {name} is {vision[name]} in config.json, {processor[in_processor]} in its image "
                    "processor",
                    "copy the image processor of the model's own base into the folder",
                )
    (key, (folder, vision)), *others = seen.items()
    for other_key, (other, theirs) in others:
        if differing := [name for name in PATCHING if vision[name] != theirs[name]]:
            yield fault(
                f"{other_key}={other} cuts images otherwise than {key}={folder}: {', '.join(differing)}",
                "start both from models of one family",
            )
    if case.rl and vision["patch_size"] != case.prism.model.image_patch_size:
        yield fault(
            f"{key}={folder} has patches of {vision['patch_size']} pixels, not {case.prism.model.image_patch_size}",
            f"set prism.model.image_patch_size={vision['patch_size']}, or choose another model=",
        )
    yield ok(
        f"patches of {vision['patch_size']} pixels, {vision['spatial_merge_size']}² of them to a token"
    )


def _image_processor(folder: Path) -> dict[str, Any]:
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            return content.get("image_processor", content)
    raise FileNotFoundError(f"{folder} holds no image processor")


def batches(case: Case) -> Iterator[Finding]:
    """What verl divides has to be divisible."""
    prism, hardware = case.prism, case.prism.hardware
    ranks = hardware.devices_per_node * hardware.nodes
    if prism.stage in ("sft", "warmup") and hardware.nodes > 1:
        yield fault(
            f"prism.hardware.nodes={hardware.nodes}: stage {prism.stage} runs on one node",
            "set prism.hardware.nodes=1",
        )
    if prism.stage == "sft" and prism.sft.examples_per_step % ranks:
        yield fault(
            f"{prism.sft.examples_per_step} demonstrations a step for {ranks} devices",
            "set prism.sft.examples_per_step to a multiple of the devices",
        )
    if case.rl:
        yield from _rl_batches(case, ranks)
    longest = prism.data.max_prompt_tokens + prism.data.max_response_tokens
    if prism.stage not in ("eval", "warmup") and longest > hardware.max_tokens_per_device:
        yield fault(
            f"a sequence may have {longest} tokens, a pass on one device {hardware.max_tokens_per_device}",
            f"set prism.hardware.max_tokens_per_device={longest}, or lower prism.data.max_response_tokens",
        )
    yield ok(f"{ranks} device{'s' if ranks > 1 else ''}")


def _rl_batches(case: Case, ranks: int) -> Iterator[Finding]:
    prism, actor = case.prism, case.config.actor_rollout_ref.actor
    tensor_parallel = prism.hardware.tensor_parallel_size
    if ranks % tensor_parallel:
        yield fault(
            f"prism.hardware.tensor_parallel_size={tensor_parallel} does not divide {ranks} devices",
            "choose one that does",
        )
    samples = prism.rollout.samples_per_prompt
    rows, mini = prism.rollout.prompts_per_step * samples, actor.ppo_mini_batch_size * samples
    if mini % ranks or rows % mini:
        yield fault(
            f"{rows} responses a step, {mini} of them to an update, {ranks} devices: each has to divide the one before",
            "set prism.rollout.prompts_per_step (and actor_rollout_ref.actor.ppo_mini_batch_size) accordingly",
        )
    pool = prism.discriminator.pool_devices
    if prism.stage == "align" and prism.discriminator.placement == "pool" and rows % pool:
        yield fault(
            f"{rows} responses a step for {pool} devices of the discriminator",
            "set prism.discriminator.pool_devices to a divisor",
        )


def rows(case: Case) -> Iterator[Finding]:
    """A batch that is never full is never trained on: verl would draw for ever."""
    prism = case.prism
    train = next((path for key, path, _ in data_files(prism) if key == "prism.data.train"), None)
    if train is None:
        yield ok("no training data needed")
        return
    found = pq.read_metadata(train).num_rows
    key, wanted = {
        "sft": ("prism.sft.examples_per_step", prism.sft.examples_per_step),
        "warmup": ("prism.warmup.prompts", prism.warmup.prompts),
    }.get(prism.stage, ("prism.rollout.prompts_per_step", prism.rollout.prompts_per_step))
    if found < wanted and prism.stage == "warmup":
        yield warning(
            f"{train} has {found} rows; all of them will be used, not {key}={wanted}",
            f"add rows, or set {key}={found}",
        )
    elif found < wanted:
        yield fault(
            f"{train} has {found} rows, less than one batch: {key}={wanted}",
            f"add rows, or lower {key}",
        )
    yield ok(f"{found} rows")


def bucket(case: Case) -> Iterator[Finding]:
    """Weights go to vLLM through a buffer, in float32. On a GPU too large a one goes past it."""
    if not case.rl:
        yield ok("no weights go to vLLM")
        return
    policy, _ = sizes(case.prism)
    largest, has = -(-4 * policy.largest // 2**20), case.prism.hardware.weight_bucket_mib
    if largest > has:
        level = fault if case.prism.hardware.device == "cpu" else warning
        yield level(
            f"the policy's largest tensor is {largest} MiB, prism.hardware.weight_bucket_mib={has}",
            f"set prism.hardware.weight_bucket_mib={largest}",
        )
    yield ok(f"largest tensor {largest} MiB")


def sizes(prism: Prism) -> tuple[Sizes, Sizes | None]:
    """Of the policy and, in the stages that have one, of the discriminator."""
    policy = sizes_of(read_config(_policy(prism)))
    if prism.stage == "warmup":
        upcycle = prism.discriminator.upcycle
        return policy, sizes_of(upcycled(read_config(upcycle.base), upcycle))
    return policy, sizes_of(
        read_config(prism.discriminator.path)
    ) if prism.stage == "align" else None


def parameters(prism: Prism) -> tuple[int, int]:
    """What will be saved: the parameters of the policy, as stored, and of the discriminator; 0 where there is none."""
    _, discriminator = sizes(prism)
    policy = 0 if prism.stage == "warmup" else stored_parameters(_policy(prism))
    return policy, 0 if discriminator is None else discriminator.total


def _policy(prism: Prism) -> Path:
    return next(iter(prism.eval.policies.values())) if prism.stage == "eval" else prism.policy
