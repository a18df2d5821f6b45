"""The discriminator on a tiny real Qwen3-VL: upcycling, routing, heads, loading."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification, Qwen3VLForConditionalGeneration

from verl_prism.discriminator import load_discriminator
from verl_prism.discriminator.batch import PROMPT, VIEWS, Group, SpanEncoder
from verl_prism.discriminator.upcycling import upcycle
from verl_prism.errors import UserError
from verl_prism.response import View

CAPTION, REASONING = "<caption> a 3 </caption>", "<think> 3 </think><answer> 3 </answer>"
SPANS = {View.PERCEPTION: CAPTION, View.REASONING: REASONING}


def test_upcycled_without_noise_computes_what_the_dense_model_computes(dense_folder, discriminator, prompt, tokenizer):
    dense = Qwen3VLForConditionalGeneration.from_pretrained(dense_folder).eval()
    encoder = SpanEncoder(tokenizer, dense.config)
    batch, _ = encoder.batch([Group(prompt, SPANS, [])])
    caption = int(batch.lengths[0])
    ids = batch.input_ids[:1, :caption]
    with torch.no_grad():
        expected = dense.model(
            input_ids=ids,
            pixel_values=prompt.pixel_values,
            image_grid_thw=prompt.image_grid_thw,
            mm_token_type_ids=(ids == dense.config.image_token_id).long(),
        ).last_hidden_state[0, -1]
        score, _ = discriminator(batch)
    weight = discriminator.heads[View.PERCEPTION.value].weight[0]
    assert score[0].item() == pytest.approx((expected @ weight).item(), abs=1e-5)


def test_positions_are_those_of_qwen3_vl(dense_folder, prompt, tokenizer):
    dense = Qwen3VLForConditionalGeneration.from_pretrained(dense_folder)
    batch, _ = SpanEncoder(tokenizer, dense.config).batch([Group(prompt, SPANS, [])])
    for row, length in enumerate(batch.lengths.tolist()):
        ids = batch.input_ids[row : row + 1, :length]
        expected, _ = dense.model.get_rope_index(
            ids, (ids == dense.config.image_token_id).int(), image_grid_thw=prompt.image_grid_thw
        )
        torch.testing.assert_close(batch.position_ids[:, row, :length], expected[:, 0])


def test_spans_are_routed_to_their_own_experts_and_the_prompt_to_all(discriminator, prompt, tokenizer):
    batch, _ = SpanEncoder(tokenizer, discriminator.config).batch([Group(prompt, SPANS, [])])
    discriminator(batch)
    kinds = batch.token_kinds.flatten()
    for router in discriminator.routers():
        chosen = {kind: set(router.chosen[kinds == kind].flatten().tolist()) for kind in (0, 1, PROMPT)}
        assert chosen[VIEWS.index(View.PERCEPTION)] == {0, 1}
        assert chosen[VIEWS.index(View.REASONING)] == {2, 3}
        assert len(chosen[PROMPT]) > 2


def test_balance_loss_is_one_where_even_and_reaches_the_router(discriminator, prompt, tokenizer):
    batch, _ = SpanEncoder(tokenizer, discriminator.config).batch([Group(prompt, SPANS, [])])
    _, balance = discriminator(batch)
    assert balance.item() == pytest.approx(1.0, abs=0.2)
    balance.backward()
    gates = [router.weight.grad.abs().sum().item() for router in discriminator.routers()]
    assert all(gate > 0 for gate in gates)


def test_each_view_has_its_head(discriminator, prompt, tokenizer):
    batch, index = SpanEncoder(tokenizer, discriminator.config).batch([Group(prompt, SPANS, [])])
    scores, _ = discriminator(batch)
    scores[index.teacher[VIEWS.index(View.PERCEPTION), 0]].backward()
    assert discriminator.heads[View.PERCEPTION.value].weight.grad.abs().sum() > 0
    assert discriminator.heads[View.REASONING.value].weight.grad.abs().sum() == 0


def test_scores_stay_fp32_in_a_bf16_trunk_under_autocast(discriminator, prompt, tokenizer):
    batch, _ = SpanEncoder(tokenizer, discriminator.config).batch([Group(prompt, SPANS, [])])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, _ = discriminator.bfloat16()(batch)
    assert scores.dtype == torch.float32
    assert (scores != scores.bfloat16().float()).any()


def test_noise_is_seeded_and_relative(dense_folder, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        upcycle(dense_folder, tmp_path / name, noise=0.01, seed=seed)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    name = next(key for key in a if key.endswith("experts.down_proj"))
    assert torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name])
    spread = (a[name] - a[name].mean(0)).std() / a[name].std()
    assert 0.005 < spread < 0.015


def test_a_missing_tensor_is_named(discriminator_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(discriminator_folder, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["heads.perception.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing keys: heads\.perception\.weight"):
        load_discriminator(broken)


def test_auto_class_loads_it(discriminator_folder, discriminator):
    assert type(AutoModelForTokenClassification.from_pretrained(discriminator_folder)) is type(discriminator)


def test_experts_that_cannot_be_split_are_refused(dense_folder, tmp_path):
    with pytest.raises(UserError, match="dedicated routing"):
        upcycle(dense_folder, tmp_path / "x", experts=3)
