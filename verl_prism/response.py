"""The response format: `<caption>…</caption><think>…</think><answer>…</answer>`, parsed once, in one pass.

A valid response has exactly one of each block, in this order, each with content, and nothing but white space before,
between and after them. A tag inside a block makes the response invalid, so an answer hidden in the reasoning or a
second caption earns nothing. Tags are matched to the letter: `<Caption>` is text. Content is a letter, digit or symbol
at least, in an answer any visible character, and neither a special token spelt out nor one phrase over and over.
"""

import re
import unicodedata
import zlib
from dataclasses import dataclass
from enum import StrEnum

BLOCK_NAMES = ("caption", "think", "answer")
_TAG = re.compile(rf"<(/?)({'|'.join(BLOCK_NAMES)})>")
_SPECIAL_TOKEN = re.compile(
    r"<\|(?:endoftext|im_(?:start|end)|(?:vision|image|video)_pad|(?:vision|object_ref|box|quad)_(?:start|end))\|>"
)
_BLANKS = frozenset(
    "\u115f\u1160\u2800\u3164\uffa0"
)  # Hangul fillers and the empty Braille cell: shown as nothing
# Prose shrinks to a third or a half; only what says the same over and over shrinks to a twentieth.
REPETITIVE_BYTES, REPETITIVE_RATIO = 1000, 20


class View(StrEnum):
    """The two parts of a response that are scored apart."""

    PERCEPTION = "perception"  # the caption block
    REASONING = "reasoning"  # the think block and the answer block


class FormatFault(StrEnum):
    """Why a response is invalid: the first fault met while reading from the left, whole-response faults last."""

    UNOPENED = "closing tag without its opening tag"
    NESTED = "tag inside a block"
    UNCLOSED = "block is not closed"
    EMPTY = "block without content"
    SPECIAL_TOKEN = "special token spelt out in a block"
    REPETITIVE = "block that repeats itself over and over"
    DUPLICATE = "block occurs twice"
    MISSING = "block is missing"
    ORDER = "blocks out of order"
    STRAY_TEXT = "text outside the blocks"


@dataclass(frozen=True)
class Block:
    """One block: `text[start:end]` of the response includes its tags, `content` is stripped and without them."""

    name: str
    start: int
    end: int
    content: str


@dataclass(frozen=True)
class Response:
    """A parsed response. `blocks` are caption, think, answer where it is valid, and empty where it has a fault."""

    text: str
    fault: FormatFault | None
    blocks: tuple[Block, ...] = ()

    @property
    def valid(self) -> bool:
        return self.fault is None

    @property
    def caption(self) -> str:
        return self._block(0).content

    @property
    def think(self) -> str:
        return self._block(1).content

    @property
    def answer(self) -> str:
        return self._block(2).content

    def span(self, view: View) -> tuple[int, int]:
        """Characters [start, end) of a view in `text`, tags included."""
        first, last = (0, 0) if view is View.PERCEPTION else (1, 2)
        return self._block(first).start, self._block(last).end

    def view_text(self, view: View) -> str:
        """The text of a view, exactly as it stands in `text`, tags included."""
        start, end = self.span(view)
        return self.text[start:end]

    def _block(self, index: int) -> Block:
        assert self.valid, f"an invalid response has no blocks ({self.fault}): check .valid first"
        return self.blocks[index]


class _Malformed(Exception):
    pass


def parse_response(text: str) -> Response:
    """Parse a whole response, in time linear in its length. Never raises: a fault stands in the result."""
    try:
        return Response(text, None, _read_blocks(text))
    except _Malformed as malformed:
        return Response(text, malformed.args[0])


def _read_blocks(text: str) -> tuple[Block, ...]:
    blocks: dict[str, Block] = {}
    opening: re.Match[str] | None = None
    end = 0  # of the last block
    for tag in _TAG.finditer(text):
        closes, name = tag[1] == "/", tag[2]
        if opening is None:
            _require(not text[end : tag.start()].strip(), FormatFault.STRAY_TEXT)
            _require(not closes, FormatFault.UNOPENED)
            _require(name not in blocks, FormatFault.DUPLICATE)
            opening = tag
        else:
            _require(closes and name == opening[2], FormatFault.NESTED)
            content = text[opening.end() : tag.start()].strip()
            _require(not _SPECIAL_TOKEN.search(content), FormatFault.SPECIAL_TOKEN)
            _require(_has_content(name, content), FormatFault.EMPTY)
            _require(not _repetitive(content), FormatFault.REPETITIVE)
            end = tag.end()
            blocks[name] = Block(name, opening.start(), end, content)
            opening = None
    _require(opening is None, FormatFault.UNCLOSED)
    _require(len(blocks) == len(BLOCK_NAMES), FormatFault.MISSING)
    _require(tuple(blocks) == BLOCK_NAMES, FormatFault.ORDER)
    _require(not text[end:].strip(), FormatFault.STRAY_TEXT)
    return tuple(blocks.values())


def _has_content(name: str, content: str) -> bool:
    """Blanks, control and zero-width characters and lone accents show nothing; a dot is an answer, but no caption."""
    kinds = "LNSP" if name == "answer" else "LNS"
    return any(unicodedata.category(each)[0] in kinds and each not in _BLANKS for each in content)


def _repetitive(content: str) -> bool:
    data = content.encode("utf-8", "surrogatepass")
    return len(data) >= REPETITIVE_BYTES and len(zlib.compress(data, 1)) * REPETITIVE_RATIO < len(
        data
    )


def _require(condition: bool, fault: FormatFault) -> None:
    if not condition:
        raise _Malformed(fault)
