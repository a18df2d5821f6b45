"""Scores that are likelihoods, against the dense model's own log-probabilities."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import Qwen3VLForConditionalGeneration

from verl_prism.discriminator import (
    DiscriminatorStep,
    FlopModel,
    Group,
    GroupEncoder,
    LossSettings,
    Optimization,
    Ranks,
    StepSettings,
    load_discriminator,
    upcycle,
)
from verl_prism.discriminator import model as model_module
from verl_prism.discriminator.batch import PROMPT, Prompt
from verl_prism.discriminator.model import LIKELIHOOD_SCALE
from verl_prism.discriminator.spans import tokenize_spans
from verl_prism.errors import UserError
from verl_prism.response import parse_response

CPU = Ranks("cpu")


@pytest.fixture(scope="module")
def untied_folder(dense_folder, tmp_path_factory):
    """The dense model with an output layer of its own."""
    folder = tmp_path_factory.mktemp("untied")
    shutil.copytree(dense_folder, folder, dirs_exist_ok=True)
    model = Qwen3VLForConditionalGeneration.from_pretrained(dense_folder)
    torch.manual_seed(0)
    weight = model.lm_head.weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(weight + 0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(params=["tied", "untied"])
def source(request, dense_folder, untied_folder):
    return dense_folder if request.param == "tied" else untied_folder


@pytest.fixture
def likelihood(dense_folder, tmp_path):
    upcycle(dense_folder, tmp_path / "likelihood", scoring="likelihood")
    return load_discriminator(tmp_path / "likelihood")


@pytest.fixture
def groups(prompts, tokenizer):
    def spans(caption: str, reasoning: str):
        text = f"<caption>{caption}</caption><think>{reasoning}</think><answer>3</answer>"
        return tokenize_spans(parse_response(text), tokenizer)

    teacher = spans("Left a 7, right a 8.", "7 + 8 = 15.")
    students = [spans("A 1.", "1 + 2 = 3, so it is 3."), None, spans("A 1.", "5")]
    return [Group(prompt, teacher, students) for prompt in prompts[:3]]


def packed(model, groups: list[Group]):
    encoder = GroupEncoder(model.config)
    return encoder.pack([encoder.encode(group) for group in groups])


def expected_score(dense, prompt: Prompt, span: tuple[int, ...]) -> float:
    """The scaled mean log-probability of a span's tokens, one token at a time."""
    ids = torch.cat([prompt.input_ids, torch.tensor(span)])[None]
    logits = dense(
        input_ids=ids,
        pixel_values=prompt.pixel_values,
        image_grid_thw=prompt.image_grid_thw,
        mm_token_type_ids=(ids == dense.config.image_token_id).int(),
    ).logits[0]
    total = 0.0
    for place, token in enumerate(span):
        total += F.log_softmax(logits[len(prompt.input_ids) + place - 1], -1)[token].item()
    return LIKELIHOOD_SCALE * total / len(span)


@torch.no_grad()
def test_an_upcycled_model_gives_the_likelihood_of_the_dense_one(source, groups, tmp_path):
    upcycle(source, tmp_path / "target", scoring="likelihood")
    model = load_discriminator(tmp_path / "target")
    dense = Qwen3VLForConditionalGeneration.from_pretrained(source)
    pack, _ = packed(model, groups)
    encoder = GroupEncoder(model.config)
    expected = []
    for group in groups:
        for _, span in encoder.encode(group).spans():
            expected.append(expected_score(dense, group.prompt, span))
    assert model(pack)[0].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("routing", ["token", "dense"])
def test_other_routings_give_the_same_likelihood_before_training(
    dense_folder, likelihood, groups, tmp_path, routing
):
    upcycle(dense_folder, tmp_path / routing, routing=routing, scoring="likelihood")
    other = load_discriminator(tmp_path / routing)
    pack, _ = packed(other, groups)
    torch.testing.assert_close(other(pack)[0], likelihood(pack)[0], atol=1e-4, rtol=1e-4)


def test_the_last_layer_routes_a_position_by_the_view_that_it_predicts(likelihood, groups):
    pack, _ = packed(likelihood, groups)
    likelihood(pack)
    for kind, experts in enumerate([{0, 1}, {2, 3}]):
        last = likelihood.routers()[-1]
        assert set(last.chosen[last.sets.of == kind].flatten().tolist()) == experts
    assert PROMPT not in likelihood.routers()[-1].sets.of


def gradients(model, pack) -> list[torch.Tensor]:
    model.zero_grad()
    scores, balance = model(pack)
    (scores.sum() + balance).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_logits_in_parts_change_neither_scores_nor_gradients(likelihood, groups, monkeypatch):
    pack, _ = packed(likelihood, groups)
    whole, _ = likelihood(pack)
    expected = gradients(likelihood, pack)
    monkeypatch.setattr(model_module, "LIKELIHOOD_TOKENS", 7)
    torch.testing.assert_close(likelihood(pack)[0], whole)
    torch.testing.assert_close(gradients(likelihood, pack), expected, atol=1e-4, rtol=1e-4)


def test_equal_texts_have_equal_scores(likelihood, groups):
    tied = [replace(group, students=[group.teacher]) for group in groups]
    pack, index = packed(likelihood, tied)
    scores, _ = likelihood(pack)
    assert torch.equal(scores[index.student[:, :, 0]], scores[index.teacher])


def make_step(model, tmp_path: Path, loss: LossSettings, lr: float = 1e-3) -> DiscriminatorStep:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)

    def update() -> float:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        return norm

    settings = StepSettings(micro_batch_tokens=4096, loss=loss)
    return DiscriminatorStep(
        model, settings, Optimization(update, optimizer.zero_grad), CPU, tmp_path
    )


def test_imitation_raises_the_likelihood_of_the_teacher(dense_folder, groups, tmp_path):
    """Bradley-Terry only asks that it is above the student's."""
    after = {}
    for imitation in (0.0, 0.1):
        upcycle(dense_folder, tmp_path / str(imitation), scoring="likelihood")
        model = load_discriminator(tmp_path / str(imitation)).train()
        step = make_step(model, tmp_path, LossSettings(imitation_coef=imitation))
        for _ in range(15):
            step(groups)
        after[imitation] = step.score(groups).teacher.mean().item()
    assert after[0.1] > after[0.0] + 1


def test_imitation_needs_a_likelihood(discriminator, tmp_path):
    with pytest.raises(UserError, match=r"imitation_coef=0\.1 needs .*scoring=likelihood.* head"):
        make_step(discriminator, tmp_path, LossSettings(imitation_coef=0.1))


def test_an_unknown_scoring_is_refused(dense_folder, tmp_path):
    with pytest.raises(UserError, match=r"scoring=odds .* must be one of"):
        upcycle(dense_folder, tmp_path / "target", scoring="odds")


def test_a_missing_output_layer_is_named(untied_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(untied_folder, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"broken has no lm_head\.weight"):
        upcycle(broken, tmp_path / "target", scoring="likelihood")


def test_the_planner_counts_the_output_layer(likelihood, discriminator):
    with_output, with_head = FlopModel.of(likelihood.config), FlopModel.of(discriminator.config)
    text = likelihood.config.text_config
    assert with_head.output == 0
    assert with_output.output == 2 * text.hidden_size * text.vocab_size
    more = with_output.span(50, 20) - with_head.span(50, 20)
    assert more == 20 * with_output.output + 19 * with_output.expert_token
