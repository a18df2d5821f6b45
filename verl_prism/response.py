"""The response format: `<caption>…</caption><think>…</think><answer>…</answer>`.

A valid response has exactly one block of each kind, in this order, each with content. Only white
space may surround the blocks. A tag inside a block makes the response invalid, so neither an answer
hidden in the reasoning nor a second caption earns anything. Tags are matched exactly: `<Caption>`
is text. Content needs a letter, digit or symbol (any visible character in an answer). It may
neither spell out a special token nor repeat one phrase over and over.
"""

import re
import unicodedata
import zlib
from dataclasses import dataclass
from enum import StrEnum

BLOCK_NAMES = ("caption", "think", "answer")
_TAG = re.compile(rf"<(/?)({'|'.join(BLOCK_NAMES)})>")
_SPECIAL_TOKEN = re.compile(
    r"<\|(?:endoftext"
    r"|im_(?:start|end)"
    r"|(?:vision|image|video)_pad"
    r"|(?:vision|object_ref|box|quad)_(?:start|end)"
    r")\|>"
)
# Hangul fillers and the empty Braille cell are letters and symbols that show nothing.
_BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
# Prose compresses to a third or a half; only endless repetition compresses to a twentieth.
REPETITIVE_BYTES = 1000
REPETITIVE_RATIO = 20


class View(StrEnum):
    """The two parts of a response that are scored separately."""

    PERCEPTION = "perception"  # the caption block
    REASONING = "reasoning"  # the think block and the answer block


class FormatFault(StrEnum):
    """Why a response is invalid: the first fault from the left, whole-response faults last."""

    UNOPENED = "closing tag without its opening tag"
    NESTED = "tag inside a block"
    UNCLOSED = "block is not closed"
    EMPTY = "block without content"
    SPECIAL_TOKEN = "special token spelled out in a block"
    REPETITIVE = "block that repeats itself over and over"
    DUPLICATE = "block occurs twice"
    MISSING = "block is missing"
    ORDER = "blocks out of order"
    STRAY_TEXT = "text outside the blocks"


@dataclass(frozen=True)
class Block:
    """One block: `text[start:end]` of the response with its tags; `content` without, stripped."""

    name: str
    start: int
    end: int
    content: str


@dataclass(frozen=True)
class Response:
    """A parsed response. `blocks` holds caption, think and answer, or nothing if there is a fault.

    The properties of the blocks and views need a valid response.
    """

    text: str
    fault: FormatFault | None
    blocks: tuple[Block, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether the response is in the format."""
        return self.fault is None

    @property
    def caption(self) -> str:
        """Content of the caption block."""
        return self._block(0).content

    @property
    def think(self) -> str:
        """Content of the think block."""
        return self._block(1).content

    @property
    def answer(self) -> str:
        """Content of the answer block."""
        return self._block(2).content

    def span(self, view: View) -> tuple[int, int]:
        """Return the characters [start, end) of a view in `text`, tags included."""
        first, last = (0, 0) if view is View.PERCEPTION else (1, 2)
        return self._block(first).start, self._block(last).end

    def view_text(self, view: View) -> str:
        """Return the unchanged text of a view, tags included."""
        start, end = self.span(view)
        return self.text[start:end]

    def _block(self, index: int) -> Block:
        assert self.valid, f"an invalid response has no blocks ({self.fault}): check .valid first"
        return self.blocks[index]


class _FormatError(Exception):
    def __init__(self, fault: FormatFault) -> None:
        self.fault = fault


def parse_response(text: str) -> Response:
    """Parse a whole response in time linear in its length.

    It never raises: if the response is invalid, the result names the fault.
    """
    try:
        return Response(text, None, _read_blocks(text))
    except _FormatError as error:
        return Response(text, error.fault)


def ends_with_answer(text: str) -> bool:
    """Return whether a response ends with a closed answer block, so that no limit has cut it.

    Space may follow. A response in another format may be whole too, but its text does not show it.
    """
    return text.rstrip().endswith(f"</{BLOCK_NAMES[-1]}>")


def _read_blocks(text: str) -> tuple[Block, ...]:
    blocks: dict[str, Block] = {}
    opening: re.Match[str] | None = None
    end = 0  # of the last block
    for tag in _TAG.finditer(text):
        if opening is None:
            _require(not text[end : tag.start()].strip(), FormatFault.STRAY_TEXT)
            _require(not _closes(tag), FormatFault.UNOPENED)
            _require(tag[2] not in blocks, FormatFault.DUPLICATE)
            opening = tag
        else:
            block = _read_block(text, opening, tag)
            blocks[block.name] = block
            end = block.end
            opening = None
    _require(opening is None, FormatFault.UNCLOSED)
    _require(len(blocks) == len(BLOCK_NAMES), FormatFault.MISSING)
    _require(tuple(blocks) == BLOCK_NAMES, FormatFault.ORDER)
    _require(not text[end:].strip(), FormatFault.STRAY_TEXT)
    return tuple(blocks.values())


def _read_block(text: str, opening: re.Match[str], tag: re.Match[str]) -> Block:
    """Return the block between an opening tag and the next tag."""
    name = opening[2]
    _require(_closes(tag) and tag[2] == name, FormatFault.NESTED)
    content = text[opening.end() : tag.start()].strip()
    _require(not _SPECIAL_TOKEN.search(content), FormatFault.SPECIAL_TOKEN)
    _require(_has_content(name, content), FormatFault.EMPTY)
    _require(not _repetitive(content), FormatFault.REPETITIVE)
    return Block(name, opening.start(), tag.end(), content)


def _closes(tag: re.Match[str]) -> bool:
    return tag[1] == "/"


def _has_content(name: str, content: str) -> bool:
    """Return whether content shows anything. A dot is an answer, but no caption.

    Blanks, control and zero-width characters and lone accents show nothing.
    """
    categories = "LNSP" if name == "answer" else "LNS"
    return any(
        unicodedata.category(character)[0] in categories and character not in _BLANKS
        for character in content
    )


def _repetitive(content: str) -> bool:
    data = content.encode("utf-8", "surrogatepass")
    if len(data) < REPETITIVE_BYTES:
        return False
    return len(zlib.compress(data, 1)) * REPETITIVE_RATIO < len(data)


def _require(condition: bool, fault: FormatFault) -> None:
    if not condition:
        raise _FormatError(fault)
