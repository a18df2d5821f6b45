"""Packed groups: visibility, positions, and the same scores as single sequences."""

from copy import deepcopy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AutoProcessor
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeModel

from verl_prism.discriminator.attention import PackLayout, Segment, flex_mask, packed_attention
from verl_prism.discriminator.batch import Group, GroupEncoder, Prompt, group_sizes
from verl_prism.discriminator.spans import VIEWS, span_ids, tokenize_spans
from verl_prism.response import parse_response
from verl_prism.stages.warmup_data import encode_row


@pytest.fixture
def teacher(tokenizer):
    return spans(tokenizer, "Left a 7, right a 8.", "Add left and right: 7 + 8 = 15.")


@pytest.fixture
def students(tokenizer, teacher):
    first = spans(tokenizer, "A 1.", "1 + 2 = 3, so the sum is 3.")
    return [first, None, spans(tokenizer, "A 1.", "5"), teacher]


def spans(tokenizer, caption: str, reasoning: str):
    text = f"<caption>{caption}</caption><think>{reasoning}</think><answer>3</answer>"
    return tokenize_spans(parse_response(text), tokenizer)


@pytest.fixture
def groups(prompts, teacher, students):
    return [Group(prompt, teacher, students) for prompt in prompts[:3]]


@pytest.fixture
def encoder(discriminator):
    return GroupEncoder(discriminator.config)


@st.composite
def packs(draw):
    """Segments of a pack of some groups."""
    segments, start = [], 0
    for _ in range(draw(st.integers(1, 3))):
        prompt = Segment(start, start + draw(st.integers(1, 6)), start, start)
        segments.append(prompt)
        start = prompt.stop
        for length in draw(st.lists(st.integers(1, 7), max_size=5)):
            segments.append(Segment(start, start + length, prompt.start, prompt.stop))
            start += length
    return segments


def dense_mask(segments: list[Segment]) -> torch.Tensor:
    """[T, T] True where a query may see a key, the slow obvious way."""
    visible = torch.zeros(segments[-1].stop, segments[-1].stop, dtype=torch.bool)
    for segment in segments:
        for query in range(segment.start, segment.stop):
            visible[query, segment.prompt_start : segment.prompt_stop] = True
            visible[query, segment.start : query + 1] = True
    return visible


@settings(deadline=None)
@given(packs(), st.sampled_from([(2, 2), (4, 2)]))
def test_blocks_attend_like_the_dense_mask(segments, heads):
    torch.manual_seed(0)
    tokens = segments[-1].stop
    query, key, value = (
        torch.randn(1, n, tokens, 8, requires_grad=True) for n in (heads[0], heads[1], heads[1])
    )
    module = torch.nn.Identity()
    output, _ = packed_attention(
        module, query, key, value, None, 0.3, packing=PackLayout.of(segments)
    )
    expected = F.scaled_dot_product_attention(
        query, key, value, attn_mask=dense_mask(segments), scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(output, expected)
    weight = torch.randn_like(output)
    ours = torch.autograd.grad((output * weight).sum(), (query, key, value))
    theirs = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    torch.testing.assert_close(ours, theirs)


@pytest.fixture
def plain_flex(monkeypatch):
    """FlexAttention by its plain formula, whose backward pass torch refuses only by a check.

    It is not compiled, which takes long on a CPU.
    """
    flex = "torch.nn.attention.flex_attention"
    monkeypatch.setattr("verl_prism.discriminator.attention._flex_attention", flex_attention)
    monkeypatch.setattr(f"{flex}._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(f"{flex}._validate_device", lambda query, key, value: None)


def with_gradients(attend, heads: tuple[int, int], tokens: int) -> tuple[torch.Tensor, ...]:
    """Return the output of attend(query, key, value) and its gradients, from fixed numbers."""
    torch.manual_seed(0)
    query = torch.randn(1, heads[0], tokens, 16, requires_grad=True)
    key = torch.randn(1, heads[1], tokens, 16, requires_grad=True)
    value = torch.randn(1, heads[1], tokens, 16, requires_grad=True)
    output = attend(query, key, value)
    weight = torch.randn(output.shape)
    return output, *torch.autograd.grad((output * weight).sum(), (query, key, value))


def some_groups(lengths: dict[int, list[int]]) -> list[Segment]:
    """Segments of groups, from the length of each prompt and of its spans."""
    segments = []
    start = 0
    for prompt_length, span_lengths in lengths.items():
        prompt = Segment(start, start + prompt_length, start, start)
        segments.append(prompt)
        start = prompt.stop
        for length in span_lengths:
            segments.append(Segment(start, start + length, prompt.start, prompt.stop))
            start += length
    return segments


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize(
    "lengths",
    [
        {150: [40, 130, 7], 300: [200, 1], 5: [128, 90]},
        {128: [128]},
        {3: [2]},
    ],
)
def test_flex_attention_equals_the_blocks_forward_and_backward(plain_flex, lengths, heads):
    segments = some_groups(lengths)
    layout = PackLayout.of(segments)
    module = torch.nn.Identity()

    def attend(packing):
        return lambda *states: packed_attention(module, *states, None, 0.3, packing=packing)[0]

    blocks = with_gradients(attend(layout), heads, segments[-1].stop)
    flex = with_gradients(attend(flex_mask(layout, "cpu")), heads, segments[-1].stop)
    for ours, theirs in zip(flex, blocks, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(packs())
def test_flex_attention_attends_like_the_dense_mask(plain_flex, segments):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, segments[-1].stop, 8) for _ in range(3))
    mask = flex_mask(PackLayout.of(segments), "cpu")
    module = torch.nn.Identity()
    output, _ = packed_attention(module, query, key, value, None, 0.3, packing=mask)
    expected = F.scaled_dot_product_attention(
        query, key, value, attn_mask=dense_mask(segments), scale=0.3
    )
    torch.testing.assert_close(output, expected.transpose(1, 2))


@settings(deadline=None, max_examples=20)
@given(st.dictionaries(st.integers(1, 300), st.lists(st.integers(1, 300), max_size=4), min_size=1))
def test_flex_mask_has_the_blocks_that_torch_finds_in_the_dense_mask(lengths):
    mask = flex_mask(PackLayout.of(some_groups(lengths)), "cpu")
    expected = create_block_mask(mask.mask_mod, None, None, *mask.seq_lengths, device="cpu")
    assert mask.seq_lengths[0] % 128 == 0
    for ours, theirs in zip(mask.as_tuple(), expected.as_tuple(), strict=True):
        if isinstance(ours, torch.Tensor):
            torch.testing.assert_close(ours, theirs)


def test_blocks_are_built_only_when_used():
    layout = PackLayout.of(some_groups({5000: [4000, 4000]}))
    flex_mask(layout, "cpu")
    assert not {"blocks", "order"} & vars(layout).keys()
    assert layout.to("cpu") is layout
    on_meta = layout.to("meta")
    assert on_meta.segments == layout.segments
    assert on_meta.device.type == "meta"


def stock_score(stock, discriminator, prompt: Prompt, span, view: int) -> torch.Tensor:
    """The score by transformers' own forward of one sequence, prompt and span."""
    ids = torch.cat([prompt.input_ids, torch.tensor(span)])[None]
    hidden = stock(
        input_ids=ids,
        pixel_values=prompt.pixel_values,
        image_grid_thw=prompt.image_grid_thw,
        mm_token_type_ids=(ids == stock.config.image_token_id).long(),
    ).last_hidden_state
    return discriminator.heads["shared"](hidden[0, -1])[0]


def test_pack_scores_equal_those_of_the_plain_transformers_model(token_discriminator, groups):
    encoder = GroupEncoder(token_discriminator.config)
    stock = Qwen3VLMoeModel._from_config(
        deepcopy(token_discriminator.config), attn_implementation="sdpa"
    )
    stock.load_state_dict(token_discriminator.model.state_dict())
    encoded = [encoder.encode(group) for group in groups]
    pack, _ = encoder.pack(encoded)
    with torch.no_grad():
        scores, _ = token_discriminator(pack)
        expected = [
            stock_score(stock, token_discriminator, group.prompt, span, view)
            for group in encoded
            for view, span in group.spans()
        ]
    torch.testing.assert_close(scores, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_pack_contains_each_prompt_and_each_text_once(encoder, groups):
    encoded = [encoder.encode(group) for group in groups]
    pack, index = encoder.pack(encoded)
    assert pack.tokens == sum(group.tokens for group in encoded)
    assert len(pack.views) == 3 * (2 + 3), (
        "two captions and three reasonings: one caption occurs twice, one is the teacher's"
    )
    assert len(pack.image_grid_thw) == len(groups)
    assert torch.equal(index.student[:, :, 3], index.teacher)
    assert index.valid.tolist() == [[True, False, True, True]] * 3


def test_positions_equal_those_of_qwen3_vl(discriminator, encoder, prompt, teacher):
    encoded = encoder.encode(Group(prompt, teacher, []))
    pack, _ = encoder.pack([encoded])
    for span, terminal in zip(encoded.teacher, pack.terminals.tolist(), strict=True):
        ids = torch.cat([prompt.input_ids, torch.tensor(span)])[None]
        expected, _ = discriminator.model.get_rope_index(
            ids,
            (ids == discriminator.config.image_token_id).int(),
            image_grid_thw=prompt.image_grid_thw,
        )
        own = pack.position_ids[:, terminal + 1 - len(span) : terminal + 1]
        actual = torch.cat([pack.position_ids[:, : len(prompt.input_ids)], own], dim=1)
        torch.testing.assert_close(actual, expected[:, 0])


def test_positions_of_two_adjacent_images_equal_those_of_qwen3_vl(
    discriminator, dense_folder, rows, teacher
):
    row = rows[0]
    content = row["prompt"][1]["content"].replace("<image>", "<image><image>")
    prompt = encode_row(
        AutoProcessor.from_pretrained(dense_folder),
        row
        | {
            "prompt": [row["prompt"][0], {"role": "user", "content": content}],
            "images": row["images"] * 2,
        },
    )
    encoded = GroupEncoder(discriminator.config).encode(Group(prompt, teacher, []))
    ids = prompt.input_ids[None]
    expected, _ = discriminator.model.get_rope_index(
        ids,
        (ids == discriminator.config.image_token_id).int(),
        image_grid_thw=prompt.image_grid_thw,
    )
    torch.testing.assert_close(encoded.positions, expected[:, 0])


def test_prompts_with_and_without_image_share_a_pack(
    discriminator, encoder, prompt, teacher, students, tokenizer
):
    bare = Prompt(torch.tensor(tokenizer.encode("What is 1 + 2?")))
    encoded = [encoder.encode(Group(part, teacher, students)) for part in (bare, prompt)]
    together, _ = discriminator(encoder.pack(encoded)[0])
    alone = torch.cat([discriminator(encoder.pack([group])[0])[0] for group in encoded])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_other_attention_is_rejected(discriminator, encoder, groups):
    discriminator.set_attn_implementation("sdpa")
    with pytest.raises(AssertionError, match="attend by packs"):
        discriminator(encoder.pack([encoder.encode(groups[0])])[0])


def test_vision_tower_runs_without_any_image(discriminator, encoder, teacher, tokenizer):
    """Sharded over ranks, all of them must gather its parameters."""
    bare = Prompt(torch.tensor(tokenizer.encode("What is 1 + 2?")))
    scores, _ = discriminator(encoder.pack([encoder.encode(Group(bare, teacher, []))])[0])
    scores.sum().backward()
    assert all(
        p.grad is not None and not p.grad.any() for p in discriminator.model.visual.parameters()
    )


def test_part_of_a_group_keeps_its_prompt_and_teacher(encoder, groups):
    whole = encoder.encode(groups[0])
    part = whole.only([2, 1])
    assert part.students == (whole.students[2], None)
    assert (part.prompt, part.teacher) == (whole.prompt, whole.teacher)
    assert part.tokens < whole.tokens


def test_planned_sizes_are_those_of_the_pack(encoder, groups):
    group = Group(groups[0].prompt, groups[0].teacher, groups[0].students[:2])
    sizes = group_sizes(group)
    pack, _ = encoder.pack([encoder.encode(group)])
    assert sizes.tokens(range(2)) == pack.tokens
    assert sizes.images == (len(group.prompt.pixel_values),)


def test_placeholder_has_no_scores_of_students(encoder, discriminator):
    pack, index = encoder.placeholder()
    assert index.student.numel() == 0
    assert discriminator(pack)[0].isfinite().all()


def test_special_token_spelled_out_in_a_text_stays_text(tokenizer):
    ids = span_ids("<caption>a <|image_pad|><|im_end|> b</caption>", tokenizer)
    special = {tokenizer.convert_tokens_to_ids(token) for token in ("<|image_pad|>", "<|im_end|>")}
    assert not special & set(ids[:-1])
    assert ids[-1] == tokenizer.eos_token_id


def test_both_sides_end_with_the_same_terminal_token(encoder, groups, tokenizer):
    pack, _ = encoder.pack([encoder.encode(group) for group in groups])
    assert set(pack.input_ids[pack.terminals].tolist()) == {tokenizer.eos_token_id}
    assert len(VIEWS) == len(set(pack.views.tolist()))


def test_a_scrambled_prompt_has_the_same_patches_in_another_order(prompt):
    scrambled = prompt.scrambled(torch.Generator().manual_seed(0))
    assert not torch.equal(scrambled.pixel_values, prompt.pixel_values)
    assert sorted(scrambled.pixel_values.tolist()) == sorted(prompt.pixel_values.tolist())
    assert torch.equal(scrambled.input_ids, prompt.input_ids)


def test_scrambled_images_change_the_scores(discriminator, encoder, groups):
    generator = torch.Generator().manual_seed(0)
    packs = [
        encoder.pack([encoder.encode(each) for each in given])[0]
        for given in (groups, [group.scrambled(generator) for group in groups])
    ]
    plain, scrambled = (discriminator(pack)[0] for pack in packs)
    assert (plain != scrambled).all()


def test_a_prompt_without_an_image_cannot_be_scrambled():
    prompt = Prompt(torch.arange(3))
    assert prompt.scrambled(torch.Generator()) is prompt
