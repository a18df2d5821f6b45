"""Pairs for the warm-up: invalid rollouts, held-out prompts and swapped teachers."""

import pytest

from verl_prism.discriminator import add_swapped_teachers, warmup_groups
from verl_prism.response import View

LIMITS = dict.fromkeys(View, 100)


@pytest.fixture(scope="module")
def groups(rows, prompts, tokenizer):
    rollouts = [[row["teacher_response"], "no format"] for row in rows]
    rollouts[3] = ["no format", "no format"]
    teachers = [row["teacher_response"] for row in rows]
    return warmup_groups(prompts, teachers, rollouts, tokenizer, LIMITS, heldout_fraction=0.25)


def test_invalid_rollouts_are_counted_and_form_no_pairs(groups):
    assert (groups.rollouts, groups.invalid) == (16, 9)
    assert len(groups.train) + len(groups.heldout) == 7, (
        "a prompt without a valid rollout holds no pair"
    )


def test_heldout_prompts_are_not_in_training(groups):
    assert len(groups.heldout) == 2
    trained = {id(group.prompt) for group in groups.train}
    assert not trained & {id(group.prompt) for group in groups.heldout}


def test_swapped_teachers_are_answers_to_other_prompts(groups):
    swapped = add_swapped_teachers(groups.train, 3, seed=0)
    teachers = [group.teacher for group in groups.train]
    for before, after in zip(groups.train, swapped, strict=True):
        added = after.students[len(before.students) :]
        assert len(added) == 3
        assert all(
            spans is None or (spans in teachers and spans != before.teacher) for spans in added
        )
    assert add_swapped_teachers(groups.train, 3, seed=0) == swapped
