"""bf16 against fp32: the configuration of real runs, at a size whose numbers can be compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification

from verl_prism.discriminator import DiscriminatorConfig, process_group, shard
from verl_prism.discriminator import PrismDiscriminatorForTokenClassification as Discriminator
from verl_prism.gpu_check.device import attending, now, peak_gib, reset_peak
from verl_prism.gpu_check.problem import Setting, config_fields
from verl_prism.gpu_check.record import Options, Record
from verl_prism.gpu_check.small import (
    MAX_TOKENS,
    Outcome,
    backward,
    gradient_error,
    make_step,
    score_error,
    small_groups,
    small_setting,
)

# Largest errors against fp32, relative as `small` defines them. bf16 has 8 bits: 2^-8 = 4e-3.
SCORE_LIMIT = 3e-2
LOSS_LIMIT = 1e-2
GRADIENT_LIMIT = 5e-2
CHECKPOINTING_LIMIT = 1e-2  # the order of atomic additions is not fixed
LEARNING_STEPS = 10
LEARNING_RATE = 1e-3


def random_model(setting: Setting, routing: str = "dedicated") -> Discriminator:
    """Return a model with random fp32 weights, made on the device."""
    torch.manual_seed(setting.seed)
    with torch.device(setting.device):
        config = DiscriminatorConfig(**config_fields(setting), routing=routing)
        model = AutoModelForTokenClassification.from_config(config, dtype=torch.float32)
    return model.train()


def checkpoint_activations(model: Discriminator) -> None:
    """Switch gradient checkpointing on, as in real runs."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def compare_precision(options: Options, record: Record) -> None:
    """Compare scores, loss and gradients of bf16 with FlexAttention, bf16 with blocks, and fp32."""
    setting = small_setting(options.device, options.quick)
    groups = small_groups(setting)
    model = random_model(setting)
    outcomes: dict[str, Outcome] = {}
    with process_group(options.device) as ranks:
        torch.backends.cudnn.allow_tf32 = False
        with attending("blocks", options.device):
            outcomes["fp32"] = backward(model, groups, ranks)
        record.add(loss=outcomes["fp32"].loss)
        with record.part("fp32 FlexAttention"), attending("flex", options.device):
            _compare(record, "fp32 flex", outcomes["fp32"], backward(model, groups, ranks), 1e-2)
        for kind in ("flex", "blocks"):
            with record.part(f"bf16 {kind}"), attending(kind, options.device):
                # A model of its own: a pass that fails leaves a sharded one in an unknown state.
                model = random_model(setting)
                shard(model, ranks, torch.bfloat16)
                outcomes[kind] = backward(model, groups, ranks)
                _compare(record, f"bf16 {kind}", outcomes["fp32"], outcomes[kind])
    if "flex" in outcomes and "blocks" in outcomes:
        _compare(record, "bf16 flex against blocks", outcomes["blocks"], outcomes["flex"])


def _compare(
    record: Record, name: str, expected: Outcome, actual: Outcome, share: float = 1.0
) -> None:
    """Check the errors of an outcome. `share` is of the limits of bf16."""
    loss_error = abs(actual.loss - expected.loss) / abs(expected.loss)
    record.check(f"{name}: scores", score_error(expected, actual), SCORE_LIMIT * share)
    record.check(f"{name}: loss", loss_error, LOSS_LIMIT * share)
    gradients = gradient_error(expected, actual)
    record.check(f"{name}: gradients", gradients, GRADIENT_LIMIT * share)


def watch_experts(options: Options, record: Record) -> None:
    """Check that the experts multiply bf16 with bf16, and that their master weights are fp32."""
    setting = small_setting(options.device, options.quick)
    model = random_model(setting)
    checkpoint_activations(model)
    with process_group(options.device) as ranks, watched_experts() as seen:
        shard(model, ranks, torch.bfloat16)
        outcome = backward(model, small_groups(setting), ranks)
    record.add(loss=outcome.loss, calls=sum(seen.values()))
    record.require("dtypes in grouped_mm", sorted(seen), ["bfloat16 x bfloat16"])
    dtypes = sorted({str(parameter.dtype) for parameter in model.parameters()})
    record.require("dtypes of the master weights", dtypes, ["torch.float32"])


@contextmanager
def watched_experts() -> Iterator[dict[str, int]]:
    """Count the calls of grouped_mm by the dtypes of its operands."""
    seen: dict[str, int] = {}
    original = F.grouped_mm

    def watch(left: Tensor, right: Tensor, **rest: Any) -> Tensor:
        name = f"{left.dtype} x {right.dtype}".replace("torch.", "")
        seen[name] = seen.get(name, 0) + 1
        return original(left, right, **rest)

    with mock.patch.object(F, "grouped_mm", watch):
        yield seen


def compare_checkpointing(options: Options, record: Record) -> None:
    """Compare gradients with and without gradient checkpointing, with the balance loss in bf16."""
    setting = small_setting(options.device, options.quick)
    groups = small_groups(setting)
    model = random_model(setting)
    outcomes = []
    with process_group(options.device) as ranks:
        shard(model, ranks, torch.bfloat16)
        for checkpointing in (False, True):
            if checkpointing:
                checkpoint_activations(model)
            reset_peak(options.device)
            outcomes.append(backward(model, groups, ranks))
            name = "with" if checkpointing else "without"
            record.add(**{f"peak_gib_{name}_checkpointing": peak_gib(options.device)})
    plain, checkpointed = outcomes
    record.check("loss", abs(checkpointed.loss - plain.loss) / plain.loss, CHECKPOINTING_LIMIT)
    record.check("gradients", gradient_error(plain, checkpointed), CHECKPOINTING_LIMIT)
    routers = {name: grad for name, grad in plain.gradients.items() if name.endswith("gate.weight")}
    still = sorted(name for name, gradient in routers.items() if not gradient.any())
    record.require("routers without a gradient", still, [])


def learn(options: Options, record: Record) -> None:
    """Check that real optimizer steps lower the loss on a fixed batch."""
    setting = small_setting(options.device, options.quick)
    groups = small_groups(setting)
    model = random_model(setting)
    checkpoint_activations(model)
    losses = []
    seconds = []
    with process_group(options.device) as ranks:
        shard(model, ranks, torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        step = make_step(model, optimizer, ranks, MAX_TOKENS, options.work)
        for _ in range(LEARNING_STEPS):
            start = now(options.device)
            metrics = step(groups).metrics
            seconds.append(round(now(options.device) - start, 4))
            losses.append(metrics["loss"])
            record.add(losses=losses, seconds=seconds, metrics=metrics)
            record.require(f"step {len(losses)} is finite", metrics["nonfinite"], 0.0)
    record.check("last loss, relative to the first", losses[-1] / losses[0], 0.9)
