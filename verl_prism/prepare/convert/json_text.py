"""Rows of JSON arrays and JSON lines, one at a time, from a stream of bytes.

A row is cut out of an array as bytes before it is parsed, so that a mistake in one row, such as a
text that is not UTF-8, does not hide the rows after it.
"""

import json
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal
from lzma import LZMAError
from typing import IO, Any
from zipfile import BadZipFile

from verl_prism.errors import UserError
from verl_prism.prepare.convert.records import Place, Record, Rejected

CHUNK = 2**18
MAX_ROW = 2**28  # bytes of one row as JSON
BOM = b"\xef\xbb\xbf"
OTHER_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
DAMAGED = (OSError, EOFError, BadZipFile, zlib.error, LZMAError)
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)  # of a string
_OUTSIDE = re.compile(rb'["\[\]{},]')


def json_records(name: str, stream: IO[bytes]) -> Iterator[Record]:
    """Yield the rows of a JSON array of objects, or of JSON lines, whichever it is.

    Args:
        name: of the file, for places.
        stream: can seek.

    Raises:
        UserError: the whole file is in a form that cannot be read.
    """
    try:
        is_array = _find_start(name, stream)
    except DAMAGED as error:
        yield Record(Place(name, 0), problem=_damaged(error), last=True)
        return
    yield from _array_records(name, stream) if is_array else _line_records(name, stream)


def _find_start(name: str, stream: IO[bytes]) -> bool:
    """Move the stream behind a byte order mark; return whether a JSON array follows."""
    head = stream.read(CHUNK)
    for mark, encoding in OTHER_BOMS.items():
        if head.startswith(mark):
            raise UserError(
                f"{name} is {encoding}; rewrite it: iconv -f {encoding} -t UTF-8 OLD > NEW"
            )
    start = len(BOM) if head.startswith(BOM) else 0
    stream.seek(start)
    text = head[start:].lstrip()
    if text.split(b"\n", 1)[0].strip() == b"{":
        raise UserError(
            f"{name} holds one object over several lines; write an array of objects, or each "
            "object on one line"
        )
    return text.startswith(b"[")


def _line_records(name: str, stream: IO[bytes]) -> Iterator[Record]:
    number = 0
    try:
        while line := stream.readline(MAX_ROW):
            number += 1
            place = Place(name, number, "line")
            if len(line) == MAX_ROW:
                _skip_line(stream)
                yield Record(place, problem=Rejected("row too large", f"over {MAX_ROW:,} bytes"))
            elif line.strip():
                yield _record(place, line.removeprefix(BOM))
    except DAMAGED as error:
        yield Record(Place(name, number + 1, "line"), problem=_damaged(error), last=True)


def _skip_line(stream: IO[bytes]) -> None:
    while (part := stream.readline(CHUNK)) and not part.endswith(b"\n"):
        pass


def _array_records(name: str, stream: IO[bytes]) -> Iterator[Record]:
    number = 0
    try:
        for item in split_array(stream):
            yield _record(Place(name, number), item)
            number += 1
    except Rejected as problem:
        yield Record(Place(name, number), problem=problem, last=True)
    except DAMAGED as error:
        yield Record(Place(name, number), problem=_damaged(error), last=True)


def split_array(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield each item of a JSON array as bytes.

    Raises:
        Rejected: the array is not closed, or something follows it.
    """
    buffer = bytearray()
    start = position = depth = items = 0
    inside = False
    while chunk := stream.read(CHUNK):
        del buffer[:start]
        position -= start
        start = 0
        buffer += chunk
        if len(buffer) > MAX_ROW:
            raise Rejected("row too large", f"over {MAX_ROW:,} bytes")
        while True:
            if inside:
                position = _INSIDE.match(buffer, position).end()  # type: ignore[union-attr]
                if position >= len(buffer) or buffer[position] != ord('"'):
                    break
                position += 1
                inside = False
            token = _OUTSIDE.search(buffer, position)
            if token is None:
                position = len(buffer)
                break
            position = token.end()
            match token[0]:
                case b'"':
                    inside = True
                case b"[" | b"{":
                    depth += 1
                    if depth == 1:
                        start = position
                case b"," if depth == 1:
                    yield bytes(buffer[start : token.start()])
                    items += 1
                    start = position
                case b"]" | b"}":
                    depth -= 1
                    if depth == 0:
                        item = bytes(buffer[start : token.start()])
                        if items or item.strip():
                            yield item
                        _check_end(bytes(buffer[position:]), stream)
                        return
    raise Rejected("JSON is cut off", "the array is not closed; rows may be missing")


def _check_end(rest: bytes, stream: IO[bytes]) -> None:
    while not rest.strip():
        rest = stream.read(CHUNK)
        if not rest:
            return
    raise Rejected("text after the JSON array", repr(rest.strip()[:40]))


def _record(place: Place, content: bytes) -> Record:
    try:
        return Record(place, _object(content.strip()))
    except Rejected as problem:
        return Record(place, problem=problem)


def _object(content: bytes) -> dict[str, Any]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Rejected("not UTF-8", f"byte {error.start}: {error.reason}") from None
    try:
        value = json.loads(text, parse_float=Decimal)  # which keeps the number as it is written
    except RecursionError:
        raise Rejected("not JSON", "nested too deeply") from None
    except ValueError as error:
        raise Rejected("not JSON", str(error)) from None
    if not isinstance(value, dict):
        raise Rejected("not an object", f"the row is {type(value).__name__}")
    return value


def _damaged(error: Exception) -> Rejected:
    return Rejected("file is damaged", f"{error or type(error).__name__}; rows may be missing")
