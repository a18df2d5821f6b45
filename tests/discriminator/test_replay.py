"""Groups of earlier steps: which are drawn, what they add to the loss, and what a resume keeps."""

import math
from dataclasses import replace

import pytest
import torch

from verl_prism.discriminator import (
    DiscriminatorStep,
    Group,
    GroupEncoder,
    LossSettings,
    MiniBatch,
    Optimization,
    Prompt,
    Ranks,
    StepSettings,
    backward_groups,
    tokenize_spans,
)
from verl_prism.discriminator.replay import Replay
from verl_prism.response import parse_response

SETTINGS = StepSettings(micro_batch_tokens=400, loss=LossSettings(balance_coef=0.0))


def spans(tokenizer, caption: str):
    text = f"<caption>{caption}</caption><think>I add.</think><answer>3</answer>"
    return tokenize_spans(parse_response(text), tokenizer)


@pytest.fixture
def groups(prompts, tokenizer):
    students = [spans(tokenizer, "A 1."), None, spans(tokenizer, "Two digits, I think.")]
    teacher = spans(tokenizer, "Left a 7, right a 8.")
    return [Group(prompt, teacher, students) for prompt in prompts[:6]]


def text_group(number: int) -> Group:
    return Group(Prompt(torch.tensor([number])), {}, [])


def numbers(drawn) -> list[int]:
    return [int(each.group.prompt.input_ids) for each in drawn]


@pytest.mark.parametrize(("share", "new", "expected"), [(0.5, 4, 4), (0.2, 8, 2), (0.0, 8, 0)])
def test_the_share_of_earlier_groups_is_drawn_without_repeats(share, new, expected):
    memory = Replay(share, capacity=100, seed="0/0")
    assert memory.draw(1, new) == []
    memory.add(1, [text_group(number) for number in range(50)])
    drawn = numbers(memory.draw(2, new))
    assert len(drawn) == len(set(drawn)) == expected


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4, 0.6])
def test_a_rank_with_one_new_group_draws_the_share_over_many_steps(share):
    memory = Replay(share, capacity=100, seed="0/0")
    memory.add(1, [text_group(number) for number in range(100)])
    earlier = sum(len(memory.draw(step, 1)) for step in range(2000))
    assert earlier / (earlier + 2000) == pytest.approx(share, abs=0.03)


def test_all_are_drawn_if_there_are_fewer():
    memory = Replay(0.9, capacity=100, seed="0/0")
    memory.add(1, [text_group(1), text_group(2)])
    assert sorted(numbers(memory.draw(2, 8))) == [1, 2]


def test_the_oldest_groups_make_room():
    memory = Replay(0.9, capacity=3, seed="0/0")
    for step in range(1, 5):
        memory.add(step, [text_group(step)])
    drawn = memory.draw(5, 8)
    assert sorted((each.step, int(each.group.prompt.input_ids)) for each in drawn) == [
        (2, 2),
        (3, 3),
        (4, 4),
    ]


def test_steps_and_ranks_draw_differently():
    draws = set()
    for seed in ("0/0", "0/1", "1/0"):
        memory = Replay(0.5, capacity=100, seed=seed)
        memory.add(1, [text_group(number) for number in range(100)])
        draws |= {tuple(numbers(memory.draw(step, 10))) for step in (2, 3)}
    assert len(draws) == 6


def test_a_resumed_run_draws_the_same_groups(groups, tmp_path):
    memory = Replay(0.5, capacity=4, seed="0/0")
    memory.add(1, groups)
    memory.save(tmp_path, rank=3)
    resumed = Replay(0.5, capacity=4, seed="0/0")
    resumed.add(7, groups)  # is replaced
    resumed.load(tmp_path, rank=3)
    for a, b in zip(memory.draw(2, 4), resumed.draw(2, 4), strict=True):
        assert (a.step, a.group.teacher, a.group.students) == (
            b.step,
            b.group.teacher,
            b.group.students,
        )
        torch.testing.assert_close(vars(a.group.prompt), vars(b.group.prompt), atol=0, rtol=0)


def test_without_replay_no_file_is_written_or_needed(tmp_path):
    memory = Replay(0.0, capacity=4, seed="0/0")
    memory.add(1, [text_group(1)])
    memory.save(tmp_path, rank=0)
    memory.load(tmp_path, rank=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("updates", [1, 2])
def test_earlier_groups_count_in_the_loss_and_get_no_score(
    discriminator, groups, tmp_path, updates
):
    """The gradient is that of one batch of new and earlier groups."""
    earlier, new = groups[:4], groups[4:]
    gradients = []

    def record() -> float:
        gradients.append({name: p.grad.clone() for name, p in discriminator.named_parameters()})
        return 1.0

    memory = Replay(0.6, capacity=10, seed="0/0")  # 3 earlier groups for 2 new ones
    memory.add(1, earlier)
    drawn = [each.group for each in memory.draw(5, len(new))]
    step = DiscriminatorStep(
        discriminator,
        replace(SETTINGS, updates_per_step=updates),
        Optimization(record, discriminator.zero_grad),
        Ranks(),
        tmp_path,
        steps=4,
        replay=memory,
    )
    result = step(new)
    assert len(drawn) == 3
    assert result.metrics["pairs"] == 2 * 5
    assert result.metrics["replay/groups"] == 3
    assert result.metrics["replay/age"] == 4
    assert result.scores.valid.shape == (2, 3)

    discriminator.zero_grad()
    batch = MiniBatch(GroupEncoder(discriminator.config), [*new, *drawn], 10_000)
    expected = backward_groups(discriminator, batch, SETTINGS.loss, Ranks())
    torch.testing.assert_close(result.scores.student, expected.scores.student[:, :2])
    for name, parameter in discriminator.named_parameters():
        torch.testing.assert_close(gradients[0][name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_a_nonfinite_step_is_not_remembered(discriminator, groups, tmp_path):
    memory = Replay(0.5, capacity=10, seed="0/0")
    optimization = Optimization(lambda: math.nan, discriminator.zero_grad)
    step = DiscriminatorStep(
        discriminator, SETTINGS, optimization, Ranks(), tmp_path, replay=memory
    )
    assert step(groups).nonfinite
    assert memory.draw(2, 10) == []
