"""Where the views of a response stand among its tokens, found in one pass over the tokens' bytes.

A token of a byte-level BPE is a run of bytes, and a response is the bytes of its tokens end to end. So nothing is
decoded twice, and neither a character spread over several tokens nor bytes that are no UTF-8 shift a span.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from verl_prism.errors import UserError
from verl_prism.response import Response, View, parse_response

TokenRange = tuple[int, int]


@dataclass(frozen=True)
class TokenSpans:
    """A parsed response and the tokens [start, end) of each view; no ranges where the response has a fault."""

    response: Response
    ranges: Mapping[View, TokenRange]


class TokenSpanFinder:
    """Finds the spans of responses in the tokens of one tokenizer. Its table of token bytes is made once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._bytes = token_bytes(tokenizer)

    def find(self, ids: Sequence[int]) -> TokenSpans:
        """Spans of a response of L tokens, in time linear in L.

        The response's text is that of `tokenizer.decode(ids, skip_special_tokens=True)`. A token belongs to the span
        in which its first byte lies: `>` merged with a newline to the block that it closes, as is `><`. A view that
        begins and ends inside one token has the range (0, 0).
        """
        pieces = [
            self._bytes.get(token, b"") for token in ids
        ]  # an id that no token has is skipped in decoding
        joined = b"".join(pieces)
        response = parse_response(joined.decode("utf-8", errors="replace"))
        if not response.valid:
            return TokenSpans(response, {})
        lengths = np.array([len(piece) for piece in pieces])
        first_bytes = np.where(lengths > 0, lengths.cumsum() - lengths, -1)
        ranges = {
            view: _token_range(first_bytes, *_byte_range(joined, response.view_text(view)))
            for view in View
        }
        return TokenSpans(response, ranges)


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """What each token adds to a decoded text: nothing if it is special, for decoding skips it.

    Raises:
        UserError: the tokenizer is no byte-level BPE.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or (type(backend.model), type(backend.decoder)) != (
        models.BPE,
        decoders.ByteLevel,
    ):
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path or 'the policy'} is no byte-level BPE, so the views cannot be "
            "found in its tokens: choose a policy (prism.policy) with one, such as Qwen3-VL"
        )
    added = backend.get_added_tokens_decoder()
    special = {token.content for token in added.values() if token.special}
    spelling = {
        number: token for token, number in backend.get_vocab(with_added_tokens=False).items()
    }
    spelling |= {number: token.content for number, token in added.items()}
    return {
        number: b"" if token in special else _spelt_bytes(token)
        for number, token in spelling.items()
    }


_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


def _spelt_bytes(token: str) -> bytes:
    """One byte per character of the byte alphabet. An added token may hold others, and then is plain text."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def _byte_range(joined: bytes, view_text: str) -> tuple[int, int]:
    """Bytes [start, end) of a view of a valid response, in which each tag stands once.

    Tags are looked for, and no characters counted, because bytes that are no UTF-8 are fewer characters in the text.
    """
    opening, closing = view_text[: view_text.index(">") + 1], view_text[view_text.rindex("<") :]
    return joined.index(opening.encode()), joined.index(closing.encode()) + len(closing)


def _token_range(first_bytes: np.ndarray, start: int, end: int) -> TokenRange:
    """Tokens whose first byte, of first_bytes[L], lies in [start, end); what is skipped in decoding has none (-1)."""
    inside = np.flatnonzero((start <= first_bytes) & (first_bytes < end))
    return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
