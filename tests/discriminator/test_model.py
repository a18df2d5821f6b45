"""The discriminator on a tiny real Qwen3-VL: routing, heads, loading."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification

from verl_prism.discriminator import load_discriminator
from verl_prism.discriminator.batch import PROMPT, Group, GroupEncoder
from verl_prism.discriminator.spans import VIEWS, tokenize_spans
from verl_prism.discriminator.upcycling import upcycle
from verl_prism.errors import UserError
from verl_prism.response import View, parse_response

RESPONSE = parse_response("<caption> a 3 </caption><think> 3 </think><answer> 3 </answer>")


def pack_of(discriminator, prompt, tokenizer):
    encoder = GroupEncoder(discriminator.config)
    spans = tokenize_spans(RESPONSE, tokenizer)
    return encoder.pack([encoder.encode(Group(prompt, spans, []))])


def test_spans_use_the_experts_of_their_view_and_the_prompt_all(discriminator, prompt, tokenizer):
    pack, _ = pack_of(discriminator, prompt, tokenizer)
    discriminator(pack)
    for router in discriminator.routers():
        chosen = {
            kind: set(router.chosen[router.sets.of == kind].flatten().tolist())
            for kind in (0, 1, PROMPT)
        }
        assert chosen[VIEWS.index(View.PERCEPTION)] == {0, 1}
        assert chosen[VIEWS.index(View.REASONING)] == {2, 3}
        last = router is discriminator.routers()[-1]
        assert len(chosen[PROMPT]) > 2 or (last and not chosen[PROMPT]), (
            "the last layer sees terminal tokens alone"
        )


FOUR = {0: [0, 1], 1: [2, 3], PROMPT: [0, 1, 2, 3]}  # the experts of each set
EIGHT = {0: [0, 1, 2, 3], 1: [4, 5, 6, 7], PROMPT: [0, 1, 2, 3, 4, 5, 6, 7]}


def balance_oracle(router, owned: dict[int, list[int]]) -> float:
    """Switch Transformer's loss within each set that chooses among experts, token by token."""
    total, token_kinds = 0.0, router.sets.of
    for kind in set(token_kinds.tolist()):
        members = (token_kinds == kind).nonzero().flatten().tolist()
        experts = owned[kind]
        if len(experts) == router.top_k:
            continue  # nothing to choose
        for expert in experts:
            share = sum((router.chosen[t] == expert).float().mean().item() for t in members) / len(
                members
            )
            probability = sum(router.probabilities[t, expert].item() for t in members) / len(
                members
            )
            total += len(experts) * share * probability * len(members)
    return total / len(token_kinds)


@pytest.mark.parametrize("owned", [FOUR, EIGHT], ids=["4 experts", "8 experts"])
def test_balance_loss_is_computed_within_each_set(dense_folder, tmp_path, prompt, tokenizer, owned):
    upcycle(dense_folder, tmp_path / "target", experts=len(owned[PROMPT]))
    discriminator = load_discriminator(tmp_path / "target")
    pack, _ = pack_of(discriminator, prompt, tokenizer)
    _, balance = discriminator(pack)
    expected = [balance_oracle(router, owned) for router in discriminator.routers()]
    assert balance.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_balance_loss_has_a_gradient_in_every_router(
    dense_folder, tmp_path, prompt, tokenizer, checkpointing
):
    """Needs eight experts: of four, each token of a view chooses both experts of the view."""
    upcycle(dense_folder, tmp_path / "eight", experts=8)
    discriminator = load_discriminator(tmp_path / "eight")
    if checkpointing:
        discriminator.train().gradient_checkpointing_enable({"use_reentrant": False})
    discriminator(pack_of(discriminator, prompt, tokenizer)[0])[1].backward()
    assert all(router.weight.grad.abs().sum() > 0 for router in discriminator.routers())


def test_gradient_checkpointing_changes_no_gradient(discriminator, prompt, tokenizer):
    def gradients():
        discriminator.zero_grad()
        scores, balance = discriminator(pack_of(discriminator, prompt, tokenizer)[0])
        (scores.sum() + balance).backward()
        return [parameter.grad.clone() for parameter in discriminator.parameters()]

    plain = gradients()
    discriminator.train().gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(), plain)


def test_dense_routing_scores_without_experts(dense_folder, tmp_path, prompt, tokenizer):
    upcycle(dense_folder, tmp_path / "dense", routing="dense")
    dense = load_discriminator(tmp_path / "dense")
    scores, balance = dense(pack_of(dense, prompt, tokenizer)[0])
    assert dense.routers() == []
    assert balance == 0
    assert scores.isfinite().all()


def test_token_routing_has_one_head_and_every_expert_for_every_token(
    token_discriminator, prompt, tokenizer
):
    pack, _ = pack_of(token_discriminator, prompt, tokenizer)
    token_discriminator(pack)
    assert list(token_discriminator.heads) == ["shared"]
    assert all(router.sets.owned.all() for router in token_discriminator.routers())


@pytest.mark.parametrize("images", [True, False])
def test_scores_depend_on_the_image_unless_it_is_hidden(
    dense_folder, tmp_path, prompt, tokenizer, images
):
    upcycle(dense_folder, tmp_path / "target", images=images)
    model = load_discriminator(tmp_path / "target")
    scrambled = prompt.scrambled(torch.Generator().manual_seed(0))
    pack, _ = pack_of(model, prompt, tokenizer)
    scores, _ = model(pack)
    others, _ = model(pack_of(model, scrambled, tokenizer)[0])
    assert torch.equal(scores, others) == (not images)
    assert (pack.pixel_values is not None) == images
    shown = model.config.image_token_id in pack.input_ids
    assert shown == images
    scores.sum().backward()
    assert model.model.visual.patch_embed.proj.weight.grad is not None  # as FSDP needs


def test_each_view_has_its_own_head(discriminator, prompt, tokenizer):
    pack, index = pack_of(discriminator, prompt, tokenizer)
    scores, _ = discriminator(pack)
    scores[index.teacher[VIEWS.index(View.PERCEPTION), 0]].backward()
    assert discriminator.heads[View.PERCEPTION.value].weight.grad.abs().sum() > 0
    assert discriminator.heads[View.REASONING.value].weight.grad.abs().sum() == 0


def test_scores_of_a_bfloat16_model_are_float32(discriminator, prompt, tokenizer):
    pack, _ = pack_of(discriminator, prompt, tokenizer)
    scores, _ = discriminator.bfloat16()(pack)
    assert scores.dtype == torch.float32
    assert (scores != scores.bfloat16().float()).any()


def test_missing_tensor_is_named(discriminator_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(discriminator_folder, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["heads.perception.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing keys: heads\.perception\.weight"):
        load_discriminator(broken)


def test_auto_class_loads_it(discriminator_folder, discriminator):
    assert type(AutoModelForTokenClassification.from_pretrained(discriminator_folder)) is type(
        discriminator
    )


def test_gradient_checkpointing_keeps_no_second_graph(discriminator, prompt, tokenizer):
    """A router's second forward, in the backward pass, must not leave its activations behind."""
    discriminator.train().gradient_checkpointing_enable({"use_reentrant": False})
    scores, balance = discriminator(pack_of(discriminator, prompt, tokenizer)[0])
    first = [router.probabilities for router in discriminator.routers()]
    (scores.sum() + balance).backward()
    assert all(
        router.probabilities is kept
        for router, kept in zip(discriminator.routers(), first, strict=True)
    )
