"""Both algorithms of a discriminator step behind one interface, on the same weights and groups."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from problem import Setting, config_fields, make_groups, make_samples
from reference import ReferenceDiscriminator, Sample, backward, score
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeConfig

from verl_prism.discriminator import (
    DiscriminatorConfig,
    Group,
    GroupEncoder,
    LossSettings,
    MiniBatch,
    Ranks,
    Runtime,
    backward_groups,
)

LEARNING_RATE = 1e-6
LOSS = LossSettings(balance_coef=0.0)  # the reference's update has no load-balancing loss
SIDES = ("reference", "ours", "dedicated")


@dataclass(frozen=True)
class Problem:
    """The same groups, as ours takes them and as the reference's samples."""

    setting: Setting
    students: int
    groups: list[Group]
    samples: list[Sample]

    @classmethod
    def make(cls, setting: Setting, students: int) -> "Problem":
        groups = make_groups(setting, students)
        return cls(setting, students, groups, make_samples(setting, groups))


@dataclass(frozen=True)
class Side:
    """One algorithm and its model. `accumulate` returns the students' scores and the loss."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    accumulate: Callable[[Problem], tuple[Tensor, float]]

    def step(self, problem: Problem) -> None:
        self.accumulate(problem)
        self.optimizer.step()
        self.optimizer.zero_grad()


def build_model(s: Setting, name: str) -> nn.Module:
    torch.manual_seed(s.seed)
    dtype: torch.dtype = getattr(torch, s.dtype)
    with torch.device(s.device):
        if name == "reference":
            return ReferenceDiscriminator(Qwen3VLMoeConfig(**config_fields(s)), dtype)
        routing = {"ours": "token", "dedicated": "dedicated"}[name]
        config = DiscriminatorConfig(**config_fields(s), routing=routing)
        return AutoModelForTokenClassification.from_config(config, dtype=dtype)


def make_side(s: Setting, name: str, model: nn.Module) -> Side:
    model.train()
    if s.checkpointing:
        checkpointed = model.model if name == "reference" else model
        checkpointed.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    optimizer = getattr(torch.optim, s.optimizer)(model.parameters(), lr=LEARNING_RATE)
    return Side(
        model, optimizer, partial(run_reference if name == "reference" else run_ours, model)
    )


def run_reference(model: ReferenceDiscriminator, problem: Problem) -> tuple[Tensor, float]:
    s = problem.setting
    scores = score(model, problem.samples)
    loss = backward(model, problem.samples, LOSS.score_regularization, s.reference_micro_batch)
    return scores.unflatten(1, (s.groups, problem.students)).cpu(), loss


def run_ours(model: nn.Module, problem: Problem) -> tuple[Tensor, float]:
    """The scores are those of the update's own forward."""
    s = problem.setting
    batch = MiniBatch(GroupEncoder(model.config), problem.groups, s.max_tokens)
    result = backward_groups(model, batch, LOSS, Runtime(Ranks(s.device)))
    return result.scores.student, result.loss


def build_sides(s: Setting) -> dict[str, Side]:
    """The reference holds the very tensors of ours, so a step of either moves both."""
    models = {name: build_model(s, name) for name in SIDES}
    models["reference"].load_state_dict(models["ours"].state_dict(), assign=True)
    return {name: make_side(s, name, model) for name, model in models.items()}
