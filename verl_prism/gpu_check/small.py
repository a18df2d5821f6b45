"""A small discriminator and its groups, for the steps that compare numbers."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from verl_prism.discriminator import (
    DiscriminatorStep,
    Group,
    GroupEncoder,
    GroupScores,
    LossSettings,
    MiniBatch,
    Optimization,
    Prompt,
    Ranks,
    StepSettings,
    backward_groups,
)
from verl_prism.discriminator import PrismDiscriminatorForTokenClassification as Discriminator
from verl_prism.gpu_check.problem import Setting, make_groups

# Several blocks of 128 tokens, two queries per key, and four experts.
SMALL = Setting(groups=3, students=(6,), prompt=220, image_side=16, caption=60, reasoning=150)
QUICK = replace(
    SMALL, students=(4,), prompt=90, image_side=8, caption=30, reasoning=60, hidden=128, layers=2
)
MAX_TOKENS = 2048  # of a micro-batch; the groups need more than one
LOSS = LossSettings(balance_coef=0.01)


@dataclass(frozen=True)
class Outcome:
    """What a backward pass gives, on the CPU in fp32."""

    scores: GroupScores
    loss: float
    gradients: dict[str, Tensor]


def small_setting(device: str, quick: bool) -> Setting:
    """Return the sizes of the model and its groups."""
    return replace(QUICK if quick else SMALL, device=device)


def small_groups(setting: Setting) -> list[Group]:
    """Return three groups, with images, with everything that a group can have.

    The first has an invalid response and a duplicate, the second two images and a response equal
    to the teacher's, the third no image.
    """
    first, second, third = make_groups(setting, setting.students[0])
    students = list(first.students)
    students[1] = None
    students[2] = students[0]
    first = replace(first, students=students)
    tied = [second.teacher, *second.students[1:]]
    second = Group(_twice(second.prompt), second.teacher, tied)
    text = third.prompt.input_ids[third.prompt.input_ids < setting.terminal_token]
    third = replace(third, prompt=Prompt(text))
    return [first, second, third]


def _twice(prompt: Prompt) -> Prompt:
    """Return a prompt that is repeated, with its image."""
    assert prompt.pixel_values is not None
    assert prompt.image_grid_thw is not None
    return Prompt(
        prompt.input_ids.repeat(2),
        prompt.pixel_values.repeat(2, 1),
        prompt.image_grid_thw.repeat(2, 1),
    )


def backward(model: Discriminator, groups: list[Group], ranks: Ranks) -> Outcome:
    """Compute the gradients of a mini-batch, and leave none in the model."""
    model.zero_grad()
    batch = MiniBatch(GroupEncoder(model.config), groups, MAX_TOKENS)
    result = backward_groups(model, batch, LOSS, ranks)
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = whole(parameter.grad).float().cpu()
    model.zero_grad()
    return Outcome(result.scores, result.loss, gradients)


def whole(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor with the shards of all ranks."""
    gather = getattr(tensor, "full_tensor", tensor.clone)
    return gather().detach()


def gradient_error(expected: Outcome, actual: Outcome) -> float:
    """Return the norm of the difference of the gradients, relative to their norm."""
    if expected.gradients.keys() != actual.gradients.keys():
        return float("inf")
    difference = 0.0
    norm = 0.0
    for name, gradient in expected.gradients.items():
        difference += (actual.gradients[name] - gradient).square().sum().item()
        norm += gradient.square().sum().item()
    return (difference / norm) ** 0.5


def score_error(expected: Outcome, actual: Outcome) -> float:
    """Return the largest difference of a valid score, relative to the largest score."""
    right = torch.cat(expected.scores.pairs())
    ours = torch.cat(actual.scores.pairs())
    return ((ours - right).abs().max() / right.abs().max()).item()


def make_step(
    model: Discriminator,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    micro_batch_tokens: int,
    folder: Path,
) -> DiscriminatorStep:
    """Return the step of real runs."""

    def change() -> float:
        norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)).item()
        optimizer.step()
        return norm

    settings = StepSettings(micro_batch_tokens, LOSS)
    optimization = Optimization(change, optimizer.zero_grad)
    return DiscriminatorStep(model, settings, optimization, ranks, folder)
