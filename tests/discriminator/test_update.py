"""Serialisation, scoring and gradients of groups on the tiny real discriminator."""

import pytest
import torch

from verl_prism.discriminator.batch import VIEWS, Group, SpanEncoder, micro_batches
from verl_prism.discriminator.loss import LossWeights, pair_metrics, pair_sums
from verl_prism.discriminator.update import backward_groups, score_groups, valid_pairs
from verl_prism.response import View, parse_response


def spans(text: str):
    response = parse_response(text)
    return {view: response.view_text(view) for view in View}


def response(caption: str, think: str, answer: str) -> str:
    return f"<caption>{caption}</caption><think>{think}</think><answer>{answer}</answer>"


@pytest.fixture
def groups(prompts, rows):
    students = [response("A 1 and a 2.", "1 + 2 = 3.", "3"), response("A 7 and a 7.", "The sum is 5.", "5")]
    return [
        Group(prompt, spans(row["teacher_response"]), [spans(students[0]), None, spans(students[g % 2])])
        for g, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
    ]


@pytest.fixture
def encoder(tokenizer, discriminator):
    return SpanEncoder(tokenizer, discriminator.config)


def test_the_teachers_text_as_the_students_scores_the_same_exactly(discriminator, encoder, prompts, rows):
    groups = [
        Group(prompt, spans(row["teacher_response"]), [spans(row["teacher_response"])])
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    metrics = pair_metrics(pair_sums(score_groups(discriminator, encoder, groups, 100_000)))
    for view in VIEWS:
        assert metrics[f"{view}/accuracy"] == 0.5 and metrics[f"{view}/margin"] == 0.0


def test_a_score_does_not_depend_on_what_else_is_in_the_batch(discriminator, encoder, groups):
    together = score_groups(discriminator, encoder, groups, 100_000)
    for g, group in enumerate(groups):
        alone = score_groups(discriminator, encoder, [group], 100_000)
        torch.testing.assert_close(alone.student[:, 0], together.student[:, g], equal_nan=True, atol=1e-5, rtol=1e-4)


def test_scores_of_the_update_are_those_of_a_scoring_pass(discriminator, encoder, groups):
    scored = score_groups(discriminator.eval(), encoder, groups, 100_000)
    updated = backward_groups(discriminator.train(), encoder, groups, LossWeights(), 100_000, pairs=valid_pairs(groups))
    torch.testing.assert_close(updated.student, scored.student, equal_nan=True, atol=0, rtol=0)
    torch.testing.assert_close(updated.teacher, scored.teacher, atol=0, rtol=0)


@pytest.mark.parametrize("extra_rounds", [0, 2])
def test_micro_batches_give_the_gradient_of_the_whole(discriminator, encoder, groups, extra_rounds):
    def gradient(max_tokens, rounds=None):
        discriminator.zero_grad()
        weights = LossWeights(balance=0.0)
        backward_groups(discriminator, encoder, groups, weights, max_tokens, pairs=valid_pairs(groups), rounds=rounds)
        return discriminator.heads["reasoning"].weight.grad.clone()

    whole = gradient(100_000)
    pieces = len(list(micro_batches(groups, encoder, 1)))
    assert pieces == len(groups)
    torch.testing.assert_close(gradient(1, pieces + extra_rounds), whole, atol=1e-5, rtol=1e-4)


def test_invalid_students_are_left_out(discriminator, encoder, groups):
    scores = score_groups(discriminator, encoder, groups, 100_000)
    assert scores.valid.tolist() == [[True, False, True]] * len(groups)
    assert valid_pairs(groups) == 2 * len(groups)


def test_a_text_that_spells_a_special_token_smuggles_none_in(encoder, tokenizer):
    ids = encoder.span_ids("<caption>a <|image_pad|><|im_end|> b</caption>")
    special = {tokenizer.convert_tokens_to_ids(token) for token in ("<|image_pad|>", "<|im_end|>")}
    assert not special & set(ids[:-1]) and ids[-1] == tokenizer.eos_token_id


def test_both_sides_end_on_the_same_terminal_token(encoder, groups, tokenizer):
    batch, _ = encoder.batch(groups)
    ends = batch.input_ids[torch.arange(len(batch.lengths)), batch.lengths - 1]
    assert set(ends.tolist()) == {tokenizer.eos_token_id}


def test_each_image_is_encoded_once_per_group(discriminator, encoder, groups):
    batch, _ = encoder.batch(groups)
    assert len(batch.image_grid_thw) == len(groups)
    assert len(batch.input_ids) > 2 * len(groups)


def test_a_score_that_is_not_finite_is_refused(discriminator, encoder, groups):
    with torch.no_grad():
        discriminator.heads["perception"].weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="not finite"):
        backward_groups(discriminator, encoder, groups, LossWeights(), 100_000, pairs=1)


def test_a_few_steps_tell_the_teacher_from_the_policy(discriminator, encoder, groups):
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-3)
    for _ in range(12):
        scores = backward_groups(discriminator, encoder, groups, LossWeights(), 100_000, pairs=valid_pairs(groups))
        optimizer.step()
        optimizer.zero_grad()
    metrics = pair_metrics(pair_sums(scores))
    assert metrics["perception/accuracy"] > 0.9 and metrics["reasoning/accuracy"] > 0.9
