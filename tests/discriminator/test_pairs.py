"""Pairs for the warm-up: invalid rollouts, held-out prompts, mismatched teachers and batches."""

import numpy as np
import pytest

from verl_prism.discriminator import (
    count_rollouts,
    index_pairs,
    mismatched_teachers,
    shuffled_batches,
)
from verl_prism.discriminator.pairs import PairIndex
from verl_prism.response import View

LIMITS = dict.fromkeys(View, 100)


def make_index(rows, tokenizer, seed=0):
    rollouts = [[row["teacher_response"], "no format"] for row in rows]
    rollouts[3] = ["no format", "no format"]
    prompts = []
    for row, sampled in zip(rows, rollouts, strict=True):
        prompts.append(count_rollouts(row["teacher_response"], sampled, tokenizer, LIMITS))
    return index_pairs(prompts, heldout_fraction=0.25, seed=seed)


@pytest.fixture(scope="module")
def index(rows, tokenizer):
    return make_index(rows, tokenizer)


def test_invalid_rollouts_are_counted_and_form_no_pairs(index):
    assert (index.rollouts, index.invalid) == (16, 9)
    assert index.valid.tolist() == [1, 1, 1, 0, 1, 1, 1, 1]
    assert sorted([*index.train, *index.heldout]) == [0, 1, 2, 4, 5, 6, 7]


def test_heldout_prompts_are_drawn_at_random(index, rows, tokenizer):
    assert len(index.heldout) == 2
    drawn = {tuple(make_index(rows, tokenizer, seed).heldout) for seed in range(5)}
    assert len(drawn) > 1, "not always the first prompts"
    assert make_index(rows, tokenizer).heldout == index.heldout


def test_mismatched_teachers_are_those_of_other_training_prompts():
    same = PairIndex([0, 1, 2], [3], np.ones(4), np.array([5, 5, 6, 7], dtype=np.uint64), 4, 0)
    chosen = mismatched_teachers(same, 20, seed=0)
    assert {prompt: set(others) for prompt, others in chosen.items()} == {
        0: {None, 2},
        1: {None, 2},
        2: {None, 0, 1},
    }
    assert mismatched_teachers(same, 20, seed=0) == chosen


def test_batches_contain_every_prompt_once_per_epoch():
    pairs = dict.fromkeys(range(8), 2)
    batches = shuffled_batches(range(8), pairs, pairs_per_batch=4, seed=0)
    epoch = [prompt for _ in range(4) for prompt in next(batches)]
    assert sorted(epoch) == list(range(8))
    again = shuffled_batches(range(8), pairs, pairs_per_batch=4, seed=0)
    assert next(again) == epoch[:2]
    assert [prompt for _ in range(4) for prompt in next(batches)] != epoch
