"""Both algorithms of a discriminator step behind one interface, on the same weights and groups."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeConfig

from verl_prism.discriminator import (
    DiscriminatorConfig,
    Group,
    GroupEncoder,
    LossSettings,
    MiniBatch,
    PrismDiscriminatorForTokenClassification,
    Ranks,
    backward_groups,
)
from verl_prism.gpu_check.problem import Setting, config_fields, make_groups, make_samples
from verl_prism.gpu_check.reference import ReferenceDiscriminator, Sample, backward, score

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
        """Make random groups of `students` responses."""
        groups = make_groups(setting, students)
        return cls(setting, students, groups, make_samples(setting, groups))


@dataclass(frozen=True)
class Side:
    """One algorithm and its model. `accumulate` returns the students' scores and the loss."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    accumulate: Callable[[Problem], tuple[Tensor, float]]

    def step(self, problem: Problem) -> None:
        """Make a step: gradients and update."""
        self.accumulate(problem)
        self.optimizer.step()
        self.optimizer.zero_grad()


Model = ReferenceDiscriminator | PrismDiscriminatorForTokenClassification


def build_model(s: Setting, name: str) -> Model:
    """Return the model of a side, with random weights made on the device."""
    torch.manual_seed(s.seed)
    dtype: torch.dtype = getattr(torch, s.dtype)
    with torch.device(s.device):
        if name == "reference":
            return ReferenceDiscriminator(Qwen3VLMoeConfig(**config_fields(s)), dtype)
        routing = {"ours": "token", "dedicated": "dedicated"}[name]
        config = DiscriminatorConfig(**config_fields(s), routing=routing)
        return AutoModelForTokenClassification.from_config(config, dtype=dtype)


def make_side(s: Setting, model: Model) -> Side:
    """Return a side with its optimizer."""
    model.train()
    optimizer = getattr(torch.optim, s.optimizer)(model.parameters(), lr=LEARNING_RATE)
    if isinstance(model, ReferenceDiscriminator):
        checkpointed = model.model
        side = Side(model, optimizer, partial(run_reference, model))
    else:
        checkpointed = model
        side = Side(model, optimizer, partial(run_ours, model))
    if s.checkpointing:
        checkpointed.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    return side


def run_reference(model: ReferenceDiscriminator, problem: Problem) -> tuple[Tensor, float]:
    """Return the students' scores[views, groups, N] and the loss, and accumulate gradients."""
    s = problem.setting
    scores = score(model, problem.samples)
    loss = backward(model, problem.samples, LOSS.score_regularization, s.reference_micro_batch)
    return scores.unflatten(1, (s.groups, problem.students)).cpu(), loss


def run_ours(
    model: PrismDiscriminatorForTokenClassification, problem: Problem
) -> tuple[Tensor, float]:
    """Do as `run_reference`. The scores are those of the update's own forward pass."""
    s = problem.setting
    batch = MiniBatch(GroupEncoder(model.config), problem.groups, s.max_tokens)
    result = backward_groups(model, batch, LOSS, Ranks(s.device))
    return result.scores.student, result.loss


def build_sides(s: Setting) -> dict[str, Side]:
    """Return both sides and ours with dedicated routing.

    The reference holds the very tensors of ours, so a step of either moves both.
    """
    models = {name: build_model(s, name) for name in SIDES}
    models["reference"].load_state_dict(models["ours"].state_dict(), assign=True)
    return {name: make_side(s, model) for name, model in models.items()}
