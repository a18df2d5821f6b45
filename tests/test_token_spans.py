"""Spans in tokens: the text against the decoder, the ranges against two slow oracles."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from verl_prism.errors import UserError
from verl_prism.response import View, parse_response
from verl_prism.token_spans import TokenSpanFinder, is_byte_level

BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "spans.py"))
VALID = "<caption>A cat.</caption><think>1 + 1 = 2.</think><answer>2</answer>"
PERCEPTION, REASONING = View.PERCEPTION, View.REASONING


@pytest.fixture(scope="session")
def merged():
    """A byte-level BPE with thousands of merges, trained on texts in many scripts."""
    return BENCHMARK["train_tokenizer"]()


@pytest.fixture(scope="session", params=["tiny", "merged"])
def codec(request, tokenizer, merged):
    return tokenizer if request.param == "tiny" else merged


@pytest.fixture(scope="session")
def finder(codec):
    return TokenSpanFinder(codec)


def byte_tokenizer(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """One token per byte, and one per merge."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(vocabulary, list(merges)))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def view_texts(tokenizer, text: str) -> list[str]:
    """The text of each view's tokens."""
    ids = tokenizer.encode(text)
    ranges = TokenSpanFinder(tokenizer).find(ids).ranges
    return [tokenizer.decode(ids[start:end]) for start, end in ranges.values()]


def by_offsets(tokenizer, text: str) -> dict[View, tuple[int, int]]:
    """Oracle: the tokenizer's own offsets give the first character of each token."""
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
def test_the_text_equals_the_decoders(codec, finder, numbers):
    """For any tokens: halves of characters, special tokens, and ids outside the vocabulary."""
    ids = [number % (len(codec) + 3) for number in numbers]
    assert finder.find(ids).response.text == codec.decode(ids, skip_special_tokens=True)


@given(contents, contents, contents, blanks)
@settings(deadline=None)
def test_the_ranges_equal_the_offsets(codec, finder, caption, think, answer, blank):
    contents = {"caption": caption, "think": think, "answer": answer}
    blocks = [f"<{name}>x{content}</{name}>" for name, content in contents.items()]
    text = blank.join(["", *blocks, ""])
    found = finder.find([*codec.encode(text), codec.eos_token_id])
    assert found.response == parse_response(text)
    assert found.ranges == by_offsets(codec, text)


@pytest.fixture(scope="session")
def tagless(codec):
    """Tokens that cannot be part of a tag: most halves of characters, and special tokens."""
    plain = [number for token, number in codec.get_vocab().items() if not {"<", ">"} & set(token)]
    return [*plain, *codec.all_special_ids]


@given(st.lists(ANY_TOKEN, max_size=20), st.lists(ANY_TOKEN, max_size=20))
@settings(deadline=None)
def test_bytes_that_are_not_utf8_shift_nothing(codec, finder, tagless, caption, reasoning):
    """With any tokens between the tags, each block keeps its length."""
    perception = [
        *codec.encode("<caption>x"),
        *(tagless[number % len(tagless)] for number in caption),
        *codec.encode("</caption>"),
    ]
    reasoned = [
        *codec.encode("<think>x"),
        *(tagless[number % len(tagless)] for number in reasoning),
        *codec.encode("</think><answer>2</answer>"),
    ]
    found = finder.find([codec.eos_token_id, *perception, *reasoned, codec.eos_token_id])
    assert found.response.valid
    middle = 1 + len(perception)
    assert found.ranges == {PERCEPTION: (1, middle), REASONING: (middle, middle + len(reasoned))}


def test_a_block_of_broken_bytes_is_parsed_like_its_decoded_text():
    """The replacement character is visible, so the block is not empty."""
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
def test_a_token_across_a_border_belongs_to_the_span_of_its_first_byte(
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
    """Qwen3's tokenizer has added tokens for tags such as <think>."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>", "日本 語", "é"])
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    ids = tokenizer.encode(
        "<caption>日本 語</caption><|end|><think>x</think><answer>é2</answer><|end|>"
    )
    found = TokenSpanFinder(tokenizer).find(ids)
    assert found.response.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert found.response.caption == "日本 語"
    assert found.ranges == {PERCEPTION: (0, 20), REASONING: (21, len(ids) - 1)}


def test_an_invalid_response_has_its_fault_and_no_ranges(tokenizer):
    found = TokenSpanFinder(tokenizer).find(tokenizer.encode("<think>1 + 1 = 2.</think>"))
    assert not found.response.valid
    assert found.ranges == {}


def test_no_tokens_are_an_invalid_response(finder):
    assert not finder.find([]).response.valid


@pytest.mark.parametrize("length", [50, 300])
def test_the_published_code_finds_the_same_spans(merged, length):
    ids = BENCHMARK["response_ids"](merged, length)
    BENCHMARK["assert_same"](merged, ids, TokenSpanFinder(merged))


def test_a_tokenizer_that_is_not_byte_level_is_refused():
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    )
    with pytest.raises(UserError, match="the tokenizer of the policy is not a byte-level BPE"):
        TokenSpanFinder(words)


def test_a_bpe_with_another_decoder_is_not_byte_level():
    tokenizer = byte_tokenizer().backend_tokenizer
    assert is_byte_level(tokenizer)
    tokenizer.decoder = decoders.BPEDecoder()
    assert not is_byte_level(tokenizer)


def test_the_check_of_a_tokenizer_imports_neither_torch_nor_transformers():
    """Inputs are checked in seconds, before torch is imported."""
    code = "import sys, verl_prism.token_spans; print({'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
