"""Spans in tokens: the decoder's text, and the ranges against two slow ways of finding them."""

import runpy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from verl_prism.errors import UserError
from verl_prism.response import View, parse_response
from verl_prism.token_spans import TokenSpanFinder

BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "spans.py"))
VALID = "<caption>A cat.</caption><think>1 + 1 = 2.</think><answer>2</answer>"
PERCEPTION, REASONING = View.PERCEPTION, View.REASONING


@pytest.fixture(scope="session")
def merged():
    """A byte-level BPE with thousands of merges, learnt from texts in many scripts."""
    return BENCHMARK["train_tokenizer"]()


@pytest.fixture(scope="session", params=["tiny", "merged"])
def codec(request, tokenizer, merged):
    return tokenizer if request.param == "tiny" else merged


@pytest.fixture(scope="session")
def finder(codec):
    return TokenSpanFinder(codec)


def byte_tokenizer(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """One token per byte, and one per merge."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    bpe = Tokenizer(
        models.BPE({token: number for number, token in enumerate(alphabet)}, list(merges))
    )
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def view_texts(tokenizer, text: str) -> list[str]:
    """What stands in the tokens of each view."""
    ids = tokenizer.encode(text)
    return [
        tokenizer.decode(ids[slice(*tokens)])
        for tokens in TokenSpanFinder(tokenizer).find(ids).ranges.values()
    ]


def by_offsets(tokenizer, text: str) -> dict[View, tuple[int, int]]:
    """Oracle: the tokenizer's own offsets tell at which character each token of a text begins."""
    first = [start for start, _ in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
    ranges = {}
    for view in View:
        start, end = parse_response(text).span(view)
        inside = [number for number, character in enumerate(first) if start <= character < end]
        ranges[view] = (inside[0], inside[-1] + 1)
    return ranges


contents = st.text(
    alphabet=st.one_of(st.sampled_from("ab 1\n.😀é字\u0301"), st.characters(codec="utf-8")),
    max_size=30,
)
blanks = st.text(alphabet=" \t\n", max_size=3)
ANY_TOKEN = st.integers(0, 100_000)


@given(st.lists(ANY_TOKEN, max_size=40))
@settings(deadline=None)
def test_the_text_is_that_of_the_decoder(codec, finder, numbers):
    """Whatever the tokens: halves of characters, special tokens, and some that the tokenizer has not."""
    ids = [number % (len(codec) + 3) for number in numbers]
    assert finder.find(ids).response.text == codec.decode(ids, skip_special_tokens=True)


@given(contents, contents, contents, blanks)
@settings(deadline=None)
def test_the_ranges_are_those_of_the_offsets(codec, finder, caption, think, answer, blank):
    blocks = (
        f"<caption>x{caption}</caption>",
        f"<think>x{think}</think>",
        f"<answer>x{answer}</answer>",
    )
    text = blank.join(["", *blocks, ""])
    found = finder.find([*codec.encode(text), codec.eos_token_id])
    assert found.response == parse_response(text)
    assert found.ranges == by_offsets(codec, text)


@pytest.fixture(scope="session")
def tagless(codec):
    """Tokens that cannot be part of a tag: most of the halves of characters, and the special ones."""
    plain = [number for token, number in codec.get_vocab().items() if not {"<", ">"} & set(token)]
    return [*plain, *codec.all_special_ids]


@given(st.lists(ANY_TOKEN, max_size=20), st.lists(ANY_TOKEN, max_size=20))
@settings(deadline=None)
def test_bytes_that_are_no_text_shift_nothing(codec, finder, tagless, caption, reasoning):
    """Any tokens between the tags: each block is as long as it was made."""
    caption, reasoning = (
        [tagless[number % len(tagless)] for number in numbers] for numbers in (caption, reasoning)
    )
    opening, closing, end = map(
        codec.encode, ("<caption>x", "</caption>", "</think><answer>2</answer>")
    )
    perception = [*opening, *caption, *closing]
    reasoned = [*codec.encode("<think>x"), *reasoning, *end]
    found = finder.find([codec.eos_token_id, *perception, *reasoned, codec.eos_token_id])
    assert found.response.valid
    middle = 1 + len(perception)
    assert found.ranges == {PERCEPTION: (1, middle), REASONING: (middle, middle + len(reasoned))}


def test_a_block_of_broken_bytes_is_judged_as_its_decoded_text():
    """The replacement character can be seen, so the block is not empty: as for a text that comes without tokens."""
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(VALID)
    inside = ids.index(tokenizer.encode("A")[0])
    ids[inside : inside + len("A cat.")] = [tokenizer.convert_tokens_to_ids("ÿ")] * 3
    found = TokenSpanFinder(tokenizer).find(ids)
    assert found.response.view_text(PERCEPTION) == "<caption>\ufffd\ufffd\ufffd</caption>"
    assert found.ranges[PERCEPTION] == (0, len("<caption>xxx</caption>"))


@pytest.mark.parametrize(
    ("between", "perception", "reasoning"),
    [
        ("", "<caption>c</caption><", "think>t</think><answer>a</answer>"),
        ("\n", "<caption>c</caption>\n", "<think>t</think><answer>a</answer>"),
        ("\n\n", "<caption>c</caption>\n", "<think>t</think><answer>a</answer>"),
        (" ", "<caption>c</caption>", "<think>t</think><answer>a</answer>"),
    ],
)
def test_a_token_over_a_border_belongs_to_the_span_of_its_first_byte(
    between, perception, reasoning
):
    tokenizer = byte_tokenizer((">", "Ċ"), (">", "<"))  # Ċ stands for the line break
    text = f"<caption>c</caption>{between}<think>t</think><answer>a</answer>"
    assert view_texts(tokenizer, text) == [perception, reasoning]


def test_a_view_inside_one_token_that_begins_before_it_has_no_token():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("\n<caption>c</caption>", normalized=False)])
    ids = tokenizer.encode("\n<caption>c</caption><think>t</think><answer>a</answer>")
    found = TokenSpanFinder(tokenizer).find(ids)
    assert found.ranges == {PERCEPTION: (0, 0), REASONING: (1, len(ids))}


def test_added_tokens_count_unless_they_are_special():
    """Qwen3's tokenizer has tags such as <think> as tokens of their own."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>", "日本 語", "é"])
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    ids = tokenizer.encode(
        "<caption>日本 語</caption><|end|><think>x</think><answer>é2</answer><|end|>"
    )
    found = TokenSpanFinder(tokenizer).find(ids)
    assert found.response.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert found.response.caption == "日本 語" and found.ranges == {
        PERCEPTION: (0, 20),
        REASONING: (21, len(ids) - 1),
    }


def test_an_invalid_response_has_its_fault_and_no_ranges(tokenizer):
    found = TokenSpanFinder(tokenizer).find(tokenizer.encode("<think>1 + 1 = 2.</think>"))
    assert not found.response.valid and found.ranges == {}


def test_no_tokens_are_an_invalid_response(finder):
    assert not finder.find([]).response.valid


@pytest.mark.parametrize("length", [50, 300])
def test_the_published_way_finds_the_same(merged, length):
    ids = BENCHMARK["response_ids"](merged, length)
    BENCHMARK["assert_same"](merged, ids, TokenSpanFinder(merged))


def test_a_tokenizer_that_is_not_byte_level_is_refused():
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    )
    with pytest.raises(UserError, match="the tokenizer of the policy is no byte-level BPE"):
        TokenSpanFinder(words)
