"""A step of the discriminator: updates, skipped updates and metrics."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from verl_prism.discriminator import (
    DiscriminatorStep,
    Group,
    GroupEncoder,
    MiniBatch,
    Optimization,
    Ranks,
    StepSettings,
    load_discriminator,
    score_groups,
    tokenize_spans,
    upcycle,
)
from verl_prism.response import View, parse_response

SETTINGS = StepSettings(micro_batch_tokens=400)


@pytest.fixture
def groups(prompts, tokenizer):
    def spans(caption: str, answer: str):
        text = f"<caption>{caption}</caption><think>{caption}</think><answer>{answer}</answer>"
        return tokenize_spans(parse_response(text), tokenizer)

    students = [spans("A 1.", "3"), None, spans("Two digits, I think.", "5")]
    return [Group(prompt, spans("Left a 7, right a 8.", "15"), students) for prompt in prompts[:3]]


@pytest.fixture
def make_step_of(tmp_path):
    """Make a step with AdamW; `spoil` changes parameters or gradients before the optimizer."""

    def make(discriminator, settings=SETTINGS, spoil=lambda parameter: None):
        optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-3, weight_decay=0.1)

        def change() -> float:
            for parameter in discriminator.parameters():
                spoil(parameter)
            norm = torch.nn.utils.clip_grad_norm_(discriminator.parameters(), 1.0).item()
            if math.isfinite(norm):
                optimizer.step()
            return norm

        optimization = Optimization(change, optimizer.zero_grad)
        return DiscriminatorStep(discriminator, settings, optimization, Ranks(), tmp_path)

    return make


@pytest.fixture
def make_step(make_step_of, discriminator):
    return partial(make_step_of, discriminator)


@pytest.fixture
def unchanged(discriminator):
    """Whether no parameter has changed since, and no gradient is left."""
    before = {
        name: parameter.detach().clone() for name, parameter in discriminator.named_parameters()
    }

    def ask() -> bool:
        same = all(
            torch.equal(before[name], p.nan_to_num())
            for name, p in discriminator.named_parameters()
        )
        return same and all(p.grad is None for p in discriminator.parameters())

    return ask


def test_step_learns_and_returns_the_scores_from_before(
    make_step, discriminator, groups, unchanged
):
    batch = MiniBatch(GroupEncoder(discriminator.config), groups, 400)
    before = score_groups(discriminator, batch, Ranks())
    result = make_step()(groups)
    torch.testing.assert_close(result.scores.student, before.student, atol=0, rtol=0)
    assert not unchanged()
    assert result.metrics["nonfinite"] == result.metrics["updates_skipped"] == 0
    assert result.metrics["pairs"] == 6
    assert result.metrics["grad_norm"] > 0


def test_several_updates_return_the_scores_from_before_the_first(make_step, discriminator, groups):
    start = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
    once = make_step()(groups)
    discriminator.load_state_dict(start)
    thrice = make_step(replace(SETTINGS, updates_per_step=3))(groups)
    torch.testing.assert_close(thrice.scores.student, once.scores.student, atol=0, rtol=0)
    torch.testing.assert_close(thrice.scores.teacher, once.scores.teacher, atol=0, rtol=0)
    after_three = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
    discriminator.load_state_dict(start)
    step = make_step()
    for _ in range(3):
        step(groups)
    for name, tensor in discriminator.state_dict().items():
        torch.testing.assert_close(tensor, after_three[name], atol=0, rtol=0)


def test_update_without_valid_pair_is_skipped_and_counted(make_step, groups, unchanged):
    metrics = make_step()([replace(group, students=[None, None]) for group in groups]).metrics
    assert unchanged()
    assert metrics["updates_skipped"] == 1
    assert metrics["pairs"] == 0
    assert metrics["nonfinite"] == 0
    assert "perception/accuracy" not in metrics
    assert "grad_norm" not in metrics


def test_update_is_skipped_above_the_accuracy_limit(make_step, groups, unchanged):
    ties = [replace(group, students=[group.teacher]) for group in groups]  # accuracy 0.5
    metrics = make_step(replace(SETTINGS, skip_above_accuracy=0.45))(ties).metrics
    assert unchanged()
    assert metrics["updates_skipped"] == 1
    assert "grad_norm" not in metrics
    metrics = make_step(replace(SETTINGS, skip_above_accuracy=0.5))(ties).metrics
    assert not unchanged()
    assert metrics["updates_skipped"] == 0


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_non_finite_score_changes_no_parameter(make_step, discriminator, groups, unchanged, number):
    weight = discriminator.heads["perception"].weight
    with torch.no_grad():
        kept = weight[0, 0].item()
        weight[0, 0] = number
    step = make_step()
    result = step(groups)
    with torch.no_grad():
        weight[0, 0] = kept
    assert result.nonfinite
    assert unchanged()
    assert set(result.metrics) == {"pairs", "valid_ratio", "updates_skipped", "nonfinite"}
    assert not step(groups).nonfinite, "learning continues once numbers are finite again"
    assert not unchanged()


def test_non_finite_gradient_changes_no_parameter(make_step, groups, unchanged):
    def spoil(parameter):
        if parameter.grad is not None:
            parameter.grad += math.inf

    result = make_step(spoil=spoil)(groups)
    assert result.nonfinite
    assert unchanged()
    assert "grad_norm" not in result.metrics


def test_no_update_follows_a_non_finite_one(make_step, discriminator, groups):
    spoilt = []

    def spoil(parameter):
        spoilt.append(parameter)
        parameter.grad.fill_(math.nan)

    assert make_step(replace(SETTINGS, updates_per_step=3), spoil)(groups).nonfinite
    assert len(spoilt) == len(list(discriminator.parameters()))


def test_run_stops_after_consecutive_non_finite_steps_and_dumps_the_batch(
    make_step, discriminator, groups, tmp_path
):
    with torch.no_grad():
        discriminator.heads["reasoning"].weight[0, 0] = math.nan
    step = make_step(replace(SETTINGS, max_nonfinite=2))
    assert step(groups).nonfinite
    with pytest.raises(
        FloatingPointError, match=r"not finite in 2 steps in a row.*nonfinite-2-rank0\.pt.*lr"
    ):
        step(groups)
    kept = torch.load(tmp_path / "nonfinite-2-rank0.pt", weights_only=True)
    assert len(kept["groups"]) == len(groups)
    torch.testing.assert_close(kept["groups"][1]["prompt_ids"], groups[1].prompt.input_ids)
    torch.testing.assert_close(kept["groups"][1]["pixel_values"], groups[1].prompt.pixel_values)
    assert kept["groups"][0]["student_ids"][1] is None
    teacher_ids = kept["groups"][0]["teacher_ids"]["perception"]
    assert tuple(teacher_ids) == groups[0].teacher[View.PERCEPTION]
    assert kept["student_scores"][1, :, 0].isnan().all()
    assert kept["student_scores"][0, :, 0].isfinite().all()


def test_finite_step_resets_the_count_of_non_finite_ones(make_step, discriminator, groups):
    step, weight = (
        make_step(replace(SETTINGS, max_nonfinite=2)),
        discriminator.heads["reasoning"].weight,
    )
    for number in (math.nan, 0.0, math.nan):
        with torch.no_grad():
            weight[0, 0] = number
        assert step(groups).nonfinite == math.isnan(number)


@pytest.mark.parametrize(
    ("experts", "routed"),
    [(4, {"prompt"}), (8, {"perception", "reasoning", "prompt"})],
)
def test_busiest_expert_is_reported_for_each_set_that_chooses(
    dense_folder, tmp_path, make_step_of, groups, experts, routed
):
    upcycle(dense_folder, tmp_path / "target", experts=experts)
    metrics = make_step_of(load_discriminator(tmp_path / "target"))(groups).metrics
    found = {name.partition("/")[2] for name in metrics if name.startswith("busiest_expert/")}
    assert found == routed
    for name in routed:
        assert 1 / experts <= metrics[f"busiest_expert/{name}"] <= 1 / 2 + 1e-6
