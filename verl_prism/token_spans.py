"""Where the views of a response are among its tokens, found in one pass over the tokens' bytes.

A token of a byte-level BPE is a run of bytes, and a response is the concatenation of its tokens'
bytes. No text is decoded twice, and neither a character spread over several tokens nor bytes that
are not UTF-8 shift a span.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer, decoders, models

from verl_prism.errors import UserError
from verl_prism.response import Response, View, parse_response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenRange = tuple[int, int]


@dataclass(frozen=True)
class TokenSpans:
    """A parsed response and the tokens [start, end) of each view; no ranges if it is invalid."""

    response: Response
    ranges: Mapping[View, TokenRange]


class TokenSpanFinder:
    """Finds the spans of responses in the tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._bytes = token_bytes(tokenizer)

    def find(self, ids: Sequence[int]) -> TokenSpans:
        """Return the spans of a response of L tokens, in time linear in L.

        The response's text equals `tokenizer.decode(ids, skip_special_tokens=True)`. A token
        belongs to the span that contains its first byte: `>` merged with a newline, and `><`,
        belong to the block that they close. A view that starts and ends inside one token has the
        range (0, 0).
        """
        # Decoding skips ids that the tokenizer does not have.
        pieces = [self._bytes.get(token, b"") for token in ids]
        joined = b"".join(pieces)
        response = parse_response(joined.decode("utf-8", errors="replace"))
        if not response.valid:
            return TokenSpans(response, {})
        lengths = np.array([len(piece) for piece in pieces])
        first_bytes = np.where(lengths > 0, lengths.cumsum() - lengths, -1)
        ranges = {}
        for view in View:
            start, end = _byte_range(joined, response.view_text(view))
            ranges[view] = _token_range(first_bytes, start, end)
        return TokenSpans(response, ranges)


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer is a byte-level BPE: each of its tokens is a run of bytes."""
    is_bpe = isinstance(tokenizer.model, models.BPE)
    return is_bpe and isinstance(tokenizer.decoder, decoders.ByteLevel)


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """Return the bytes that each token adds to a decoded text; none for special tokens.

    Raises:
        UserError: the tokenizer is not a byte-level BPE.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not is_byte_level(backend):
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path or 'the policy'} is not a byte-level BPE, "
            "so the views cannot be found among its tokens: choose a policy (prism.policy) with "
            "one, such as Qwen3-VL"
        )
    vocabulary = backend.get_vocab(with_added_tokens=False)
    table = {number: _to_bytes(token) for token, number in vocabulary.items()}
    for number, added in backend.get_added_tokens_decoder().items():
        table[number] = b"" if added.special else _to_bytes(added.content)
    return table


def _to_bytes(token: str) -> bytes:
    """Return one byte per character; an added token may be plain text outside the byte alphabet."""
    alphabet = _byte_alphabet()
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:
        return token.encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode  # may import torch

    return {character: byte for byte, character in bytes_to_unicode().items()}


def _byte_range(joined: bytes, view_text: str) -> tuple[int, int]:
    """Return the bytes [start, end) of a view of a valid response, which has each tag once.

    It searches for the tags. Counting characters would not do: the decoded text has fewer of them
    than there are bytes that are not UTF-8.
    """
    opening = view_text[: view_text.index(">") + 1].encode()
    closing = view_text[view_text.rindex("<") :].encode()
    return joined.index(opening), joined.index(closing) + len(closing)


def _token_range(first_bytes: np.ndarray, start: int, end: int) -> TokenRange:
    """Return the tokens whose first byte lies in [start, end).

    first_bytes: [L]; -1 for a token that decoding skips.
    """
    inside = np.flatnonzero((start <= first_bytes) & (first_bytes < end))
    if not len(inside):
        return 0, 0
    return int(inside[0]), int(inside[-1]) + 1
