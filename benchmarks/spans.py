"""Time to find the views of a response among its tokens: one pass over bytes, and by prefixes.

    python benchmarks/spans.py

The published code decodes the response, matches the format, and decodes the first 1, 2, 3, … tokens
until the caption appears; the reasoning is the rest. Both alternate in this process on the same
responses (30 % caption), with a byte-level BPE that is trained on the spot. Their spans must agree.
Times are medians over the rounds; each round calls our function twenty times.
"""

import argparse
import functools
import pydoc_data.topics
import re
import statistics
import sys
import timeit
import unicodedata
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from verl_prism.response import View
from verl_prism.token_spans import TokenRange, TokenSpanFinder

LENGTHS = (500, 2_000, 5_000, 10_000, 20_000)
REFERENCE_LENGTHS = (500, 2_000)
REQUIRED_SPEEDUP = 20
REQUIRED_LENGTH = 2_000
CAPTION_SHARE = 0.3
FORMAT = re.compile(
    r"\s*(?P<caption><caption>.*?</caption>)"
    r"\s*(?P<reasoning><think>.*?</think>\s*<answer>.*?</answer>)\s*",
    re.DOTALL,
)
# Qwen's tokenizers join punctuation and line breaks after it: `>` and a newline are one token.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def corpus() -> list[str]:
    """Lines of Python's documentation, and names of characters of two to four bytes."""
    prose = "".join(pydoc_data.topics.topics.values()).splitlines()
    codes = (*range(0x00C0, 0x0600), *range(0x3041, 0x4F00), *range(0x1F300, 0x1F700))
    named = [f"{chr(code) * 3} {unicodedata.name(chr(code), '')}" for code in codes]
    return [line for pair in zip(prose, named, strict=False) for line in pair]


def response_text(caption: str, think: str) -> str:
    return f"<caption>\n{caption}\n</caption>\n<think>{think}</think>\n<answer>42</answer>"


@functools.cache
def train_tokenizer(vocabulary: int = 8_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE with thousands of merges inside and across characters and tags."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((response_text(line, line) for line in corpus()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")


def response_ids(tokenizer: PreTrainedTokenizerFast, tokens: int) -> list[int]:
    """A valid response of about `tokens` tokens: it ends with the first line over this number."""
    counts = [len(ids) for ids in tokenizer(corpus()[: tokens // 5])["input_ids"]]
    lines: list[str] = []
    caption_lines = 0
    total = 0
    for line, count in zip(corpus(), counts, strict=False):
        if total >= tokens:
            break
        caption_lines += total < CAPTION_SHARE * tokens
        lines.append(line)
        total += count + 1
    text = response_text("\n".join(lines[:caption_lines]), "\n".join(lines[caption_lines:]))
    return [*tokenizer.encode(text), tokenizer.eos_token_id]


def by_prefixes(
    tokenizer: PreTrainedTokenizerFast, ids: list[int]
) -> dict[View, TokenRange] | None:
    """The published code's way; None if the response is not in the format."""
    match = FORMAT.fullmatch(tokenizer.decode(ids, skip_special_tokens=True))
    if match is None:
        return None
    for end in range(1, len(ids) + 1):
        if match["caption"] in tokenizer.decode(ids[:end], skip_special_tokens=True):
            return {View.PERCEPTION: (0, end), View.REASONING: (end, len(ids))}
    raise AssertionError("the whole response contains its caption")


def assert_same(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], finder: TokenSpanFinder
) -> None:
    """Compare the caption's tokens and the reasoning's text.

    The published range of the reasoning also contains the end of the turn.
    """
    ours = finder.find(ids).ranges
    theirs = by_prefixes(tokenizer, ids)
    assert theirs is not None
    assert ours[View.PERCEPTION] == theirs[View.PERCEPTION]
    texts = []
    for ranges in (ours, theirs):
        start, end = ranges[View.REASONING]
        texts.append(tokenizer.decode(ids[start:end], skip_special_tokens=True).strip())
    assert texts[0] == texts[1]


def milliseconds(call: Callable[[], object], calls: int = 1) -> float:
    """Mean time of a call."""
    return timeit.timeit(call, number=calls) / calls * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Compare two ways of finding the views among a response's tokens."
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    tokenizer = train_tokenizer()
    finder = TokenSpanFinder(tokenizer)
    responses = {length: response_ids(tokenizer, length) for length in LENGTHS}
    for length in REFERENCE_LENGTHS:
        assert_same(tokenizer, responses[length], finder)

    ours: dict[int, list[float]] = {length: [] for length in LENGTHS}
    theirs: dict[int, list[float]] = {length: [] for length in REFERENCE_LENGTHS}
    for _ in range(rounds):
        for length, ids in responses.items():
            ours[length].append(milliseconds(functools.partial(finder.find, ids), calls=20))
            if length in theirs:
                call = functools.partial(by_prefixes, tokenizer, ids)
                theirs[length].append(milliseconds(call))

    columns = ("tokens", "one pass, ms", "µs per token", "prefixes, ms", "ratio")
    table = Table(*columns, title="Finding the views")
    for length, ids in responses.items():
        one = statistics.median(ours[length])
        row = [str(len(ids)), f"{one:.3f}", f"{one * 1e3 / len(ids):.3f}"]
        if length in theirs:
            many = statistics.median(theirs[length])
            row += [f"{many:.1f}", f"{many / one:.0f}x"]
        table.add_row(*row)
    Console().print(table)
    length = REQUIRED_LENGTH
    ratio = statistics.median(theirs[length]) / statistics.median(ours[length])
    print(
        f"at {length} tokens {ratio:.0f}x faster, at least {REQUIRED_SPEEDUP}x required; "
        f"same spans; {rounds} rounds"
    )
    return 0 if ratio >= REQUIRED_SPEEDUP else 1


if __name__ == "__main__":
    sys.exit(main())
