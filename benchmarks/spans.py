"""Time to find the views of a response in its tokens: our one pass over bytes against the published code's way.

    python benchmarks/spans.py

The published code decodes the response, matches the format, and decodes the first 1, 2, 3, … tokens until the caption
appears; the reasoning is the rest. Both run alternately in this process, on the same responses (three tenths caption),
with a byte-level BPE that is trained on the spot; their spans must be the same. Times are medians over the rounds, in
each of which our way is called twenty times.
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

LENGTHS, REFERENCE_LENGTHS = (500, 2_000, 5_000, 10_000, 20_000), (500, 2_000)
BAR, BAR_LENGTH = 20, 2_000
CAPTION_SHARE = 0.3
FORMAT = re.compile(
    r"\s*(?P<caption><caption>.*?</caption>)\s*(?P<reasoning><think>.*?</think>\s*<answer>.*?</answer>)\s*",
    re.DOTALL,
)
# As Qwen's tokenizers cut texts: punctuation takes the line breaks behind it, so `>` and a newline become one token.
PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@functools.cache
def corpus() -> list[str]:
    """Lines from Python's own documentation and from the names of characters of two to four bytes."""
    prose = "".join(pydoc_data.topics.topics.values()).splitlines()
    letters = [
        chr(code)
        for code in (*range(0x00C0, 0x0600), *range(0x3041, 0x4F00), *range(0x1F300, 0x1F700))
    ]
    named = [f"{letter * 3} {unicodedata.name(letter, '')}" for letter in letters]
    return [line for pair in zip(prose, named, strict=False) for line in pair]


def response_text(caption: str, think: str) -> str:
    return f"<caption>\n{caption}\n</caption>\n<think>{think}</think>\n<answer>42</answer>"


@functools.cache
def train_tokenizer(vocabulary: int = 8_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE with thousands of merges, some of them inside and some across characters and tags."""
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
    """A valid response of `tokens` tokens, give or take the line that goes over."""
    counts = [len(ids) for ids in tokenizer(corpus()[: tokens // 5])["input_ids"]]
    lines: list[str] = []
    caption_lines = total = 0
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
    """The published code's way. None where the response is not in the format."""
    match = FORMAT.fullmatch(tokenizer.decode(ids, skip_special_tokens=True))
    if match is None:
        return None
    for end in range(1, len(ids) + 1):
        if match["caption"] in tokenizer.decode(ids[:end], skip_special_tokens=True):
            return {View.PERCEPTION: (0, end), View.REASONING: (end, len(ids))}
    raise AssertionError("the whole response holds its caption")


def assert_same(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], finder: TokenSpanFinder
) -> None:
    """The same tokens of the caption; the same text of the reasoning, of which the other way's range also has the end
    of the turn."""
    ours, theirs = finder.find(ids).ranges, by_prefixes(tokenizer, ids)
    assert theirs is not None and ours[View.PERCEPTION] == theirs[View.PERCEPTION]
    texts = [
        tokenizer.decode(ids[slice(*ranges[View.REASONING])], skip_special_tokens=True)
        for ranges in (ours, theirs)
    ]
    assert texts[0].strip() == texts[1].strip()


def milliseconds(call: Callable[[], object], calls: int = 1) -> float:
    """Mean time of a call."""
    return timeit.timeit(call, number=calls) / calls * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Compare two ways of finding the views in a response's tokens."
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
            ours[length].append(milliseconds(lambda ids=ids: finder.find(ids), calls=20))
            if length in theirs:
                theirs[length].append(milliseconds(lambda ids=ids: by_prefixes(tokenizer, ids)))

    table = Table(
        "tokens", "one pass, ms", "µs per token", "prefixes, ms", "ratio", title="Finding the views"
    )
    for length, ids in responses.items():
        one = statistics.median(ours[length])
        row = [str(len(ids)), f"{one:.3f}", f"{one * 1e3 / len(ids):.3f}"]
        if length in theirs:
            many = statistics.median(theirs[length])
            row += [f"{many:.1f}", f"{many / one:.0f}x"]
        table.add_row(*row)
    Console().print(table)
    ratio = statistics.median(theirs[BAR_LENGTH]) / statistics.median(ours[BAR_LENGTH])
    print(f"at {BAR_LENGTH} tokens {ratio:.0f}x, of at least {BAR}x; same spans; {rounds} rounds")
    return 0 if ratio >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
