"""Checks of the sizes of a step, which need no data: devices, engines, and the longest sequence."""

import math
from dataclasses import dataclass

from verl_prism.config import ON_RAY, Prism
from verl_prism.errors import UserError


@dataclass(frozen=True)
class StepSize:
    """A config key and its value, and what a step of this size has.

    Attributes:
        rows: number of rows that it takes.
        parts: number of examples, pairs or responses that the devices share.
        kind: what these parts are.
    """

    key: str
    value: int
    rows: int
    parts: int
    kind: str


def check_division(prism: Prism) -> None:
    """Check that a step divides among the devices, and the devices among vLLM's engines.

    If not, verl would train a smaller step than the config says, or fail in the middle of one.

    Raises:
        UserError: names the key, the number of devices and values that divide.
    """
    size = step_size(prism)
    if size is not None:
        _check_step(size, prism.hardware.devices_per_node * prism.hardware.nodes)
    if prism.samples_policy:
        _check_engines(prism)


def check_longest(prism: Prism) -> None:
    """Check that the longest prompt with the longest response fits into one pass of the policy.

    If not, verl would fail at the first step with such a sequence. The other stages check the
    sequences that they have.
    """
    if prism.stage not in ON_RAY:
        return
    longest = prism.data.max_tokens
    limit = prism.hardware.max_tokens_per_device
    if longest > limit:
        raise UserError(
            f"prism.data.max_prompt_tokens={prism.data.max_prompt_tokens} and "
            f"prism.data.max_response_tokens={prism.data.max_response_tokens} are {longest:,} "
            f"tokens, but a pass holds {limit:,} per device; "
            f"set prism.hardware.max_tokens_per_device={longest}, or lower one of them"
        )


def _check_step(size: StepSize, devices: int) -> None:
    if size.parts % devices == 0:
        return
    smallest = devices // math.gcd(devices, size.parts // size.value)
    lower = size.value - size.value % smallest
    nearest = [f"{value:,}" for value in (lower, lower + smallest) if value]
    raise UserError(
        f"a step has {size.parts:,} {size.kind} ({size.key}={size.value:,}), which do not divide "
        f"among {devices} devices; set {size.key} to {' or '.join(nearest)}"
    )


def _check_engines(prism: Prism) -> None:
    """Check that all engines have `tensor_parallel_size` devices.

    Only verl's engines, in stages align and rlvr, can span nodes.
    """
    hardware = prism.hardware
    devices, owner = hardware.devices_per_node, "a node"
    if prism.stage in ON_RAY:
        devices, owner = devices * hardware.nodes, "the run"
    if devices % hardware.tensor_parallel_size:
        raise UserError(
            f"prism.hardware.tensor_parallel_size={hardware.tensor_parallel_size} does not divide "
            f"the {devices} devices of {owner}; set it to a divisor of {devices}"
        )


def step_size(prism: Prism) -> StepSize | None:
    """Return the size of the stage's steps, None for stages that use the rows that there are."""
    match prism.stage:
        case "sft":
            size = prism.sft.examples_per_step
            return StepSize("prism.sft.examples_per_step", size, size, size, "examples")
        case "dpo":
            size = prism.dpo.pairs_per_step
            rows = math.ceil(size / prism.dpo.responses_per_prompt)
            return StepSize("prism.dpo.pairs_per_step", size, rows, size, "pairs")
        case "align" | "rlvr":
            size = prism.rollout.prompts_per_step
            responses = size * prism.rollout.samples_per_prompt
            return StepSize("prism.rollout.prompts_per_step", size, size, responses, "responses")
    return None
