"""Say how long the stage will take: an estimate, with what it assumes."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from verl_prism.config import ONLY_SAMPLE, Prism
from verl_prism.data.epochs import steps_of
from verl_prism.doctor.devices import visible_gpus
from verl_prism.doctor.finding import Case, Finding, ok
from verl_prism.doctor.lengths import mean_lengths
from verl_prism.doctor.memory_checks import device_memory
from verl_prism.gpu_check.peaks import peak_of

if TYPE_CHECKING:
    from verl_prism.doctor.time_estimate import Model, StageTime

SHOWN = 0.005  # share of the time from which a part is shown


def check_time(case: Case) -> Iterator[Finding]:
    """Estimate the time of the stage on GPUs."""
    reason = _no_estimate(case)
    if reason is not None:
        yield ok(reason)
        return
    from verl_prism.doctor import time_estimate

    gpus = visible_gpus()
    name = gpus[0].name if gpus else "H100"
    peak = peak_of(name)
    if peak is None:
        yield ok(f"no estimate: the peak speeds of {name} are not known")
        return
    gpu = time_estimate.Gpu(peak, device_memory(case)[0])
    policy, discriminator = _models(case)
    lengths, origin = mean_lengths(case)
    model = time_estimate.TimeModel(_with_steps(case), policy, discriminator, lengths, gpu)
    yield ok(time_text(time_estimate.stage_time(model), name))
    yield ok(
        f"it assumes {100 * time_estimate.MFU:.0f} % of the peak FLOP/s, "
        f"{100 * time_estimate.BANDWIDTH_SHARE:.0f} % of the memory bandwidth, {origin}"
    )


def _no_estimate(case: Case) -> str | None:
    """Return why this run has no estimate; None if it has one."""
    prism = case.prism
    if prism.hardware.device == "cpu":
        return "no estimate for CPUs"
    if prism.stage in ONLY_SAMPLE:
        return f"no estimate for stage {prism.stage}"
    if prism.stage == "rlvr" and prism.algorithm.distillation.enable:
        return "no estimate for runs with a white-box teacher"
    if prism.epochs is not None and case.has_wrong_inputs:
        return "no estimate: prism.epochs is set, and the rows cannot be counted"
    return None


def _with_steps(case: Case) -> Prism:
    """Return the run with the number of steps that `prism.epochs` means, if it is set."""
    if case.prism.epochs is None:
        return case.prism
    rows = case.inputs.train_rows
    assert rows is not None
    return case.prism.model_copy(update={"steps": steps_of(case.prism, rows)})


def _models(case: Case) -> "tuple[Model, Model | None]":
    """Return the policy, and the discriminator if the stage has one."""
    from transformers import Qwen3VLConfig

    from verl_prism.discriminator.costs import FlopModel
    from verl_prism.discriminator.model import DiscriminatorConfig
    from verl_prism.discriminator.shards import read_config
    from verl_prism.doctor.sizes import upcycled
    from verl_prism.doctor.time_estimate import Model

    flops = FlopModel.of_policy(read_config(case.policy_folder, Qwen3VLConfig))
    policy = Model(case.policy, flops)
    if case.discriminator is None:
        return policy, None
    settings = case.prism.discriminator
    if case.prism.stage == "warmup":
        base = read_config(settings.upcycle.base, Qwen3VLConfig)
        config = upcycled(base, settings.upcycle)
    else:
        config = read_config(settings.path, DiscriminatorConfig)
    return policy, Model(case.discriminator, FlopModel.of(config))


def time_text(estimate: "StageTime", gpu: str) -> str:
    """Return the estimate in one line."""
    total = sum(estimate.parts.values())
    shares = []
    for part, seconds in sorted(estimate.parts.items(), key=lambda item: -item[1]):
        if seconds > SHOWN * total:
            shares.append(f"{part} {100 * seconds / total:.0f} %")
    return (
        f"about {two_digits(estimate.gpu_hours)} GPU hours "
        f"({estimate.steps:,} steps x {two_digits(estimate.step_seconds)} s "
        f"on {estimate.devices} x {gpu}; an estimate, not measured: {', '.join(shares)})"
    )


def two_digits(value: float) -> str:
    """Format a positive number with two significant digits."""
    decimals = 1 - math.floor(math.log10(value))
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"
