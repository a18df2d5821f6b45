"""A row's images as encoded bytes, from bytes, base64 or paths."""

import base64
import binascii
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from verl_prism.data.checks.images import UNREADABLE, readable_size
from verl_prism.data.images import MAX_ASPECT_RATIO
from verl_prism.prepare.convert.archives import inner_path
from verl_prism.prepare.convert.records import Rejected, Store

# Formats that Pillow decodes itself, without starting another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
# The first characters of a PNG, JPEG, WebP, GIF and TIFF in base64.
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|UklGR|R0lGOD|SUkqA|TU0AK)[A-Za-z0-9+/=\s]{50,}")
_DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+-]+=[\w.+-]+)*(;base64)?,", re.ASCII)
_FIELDS = ("bytes", "base64", "image", "image_url", "url", "path", "file_name")


class Folder:
    """The files of a folder. Neither `..` nor a link leads out of it."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._root = path.resolve()

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a file's content, None if there is no such file; see `Store`."""
        if not Path(path).is_absolute():
            path = inner_path(path)
        elif "\0" in path:
            raise Rejected("image path is empty or not a path", repr(path))
        try:
            file = (self._root / path).resolve()
            if not file.is_relative_to(self._root):
                raise Rejected("image path leads out of its folder", f"{path} ({self.name})")
            if not file.exists():
                return None
            if not file.is_file():
                raise Rejected("image is not a file", f"{path} ({self.name})")
            with open(file, "rb") as opened:
                content = opened.read(limit + 1)
        except (OSError, RuntimeError) as error:
            raise Rejected("image cannot be read", f"{path[:200]}: {error}") from None
        if len(content) > limit:
            raise Rejected("image too large", f"{path} has over {limit:,} bytes")
        return content


class ImageReader:
    """Reads and checks images.

    Args:
        stores: where paths start; a path must be found in exactly one.
        limit: the largest encoded image in bytes.
        strip_prefix: is taken off the front of each path.
        add_prefix: is then put before it.
    """

    def __init__(
        self, stores: Sequence[Store], limit: int, strip_prefix: str | None, add_prefix: str | None
    ) -> None:
        self.name = " ".join(store.name for store in stores)
        self._stores = stores
        self._limit = limit
        self._strip = strip_prefix or ""
        self._add = add_prefix or ""

    def read(self, values: Sequence[Any]) -> list[bytes]:
        """Return the encoded images that `values` name, unchanged.

        Each value is bytes, a path, base64, a data URL, or a mapping with one of them.

        Raises:
            Rejected: an image is missing or unreadable.
        """
        images = []
        for number, value in enumerate(flat(values)):
            content = self._content(f"images[{number}]", value)
            check_image(f"images[{number}]", content)
            images.append(content)
        return images

    def _content(self, place: str, value: Any) -> bytes:
        if isinstance(value, Mapping):
            return self._content(place, _field(place, value))
        if isinstance(value, bytes | bytearray | memoryview):
            if len(value) > self._limit:
                raise Rejected("image too large", f"{place} has {len(value):,} bytes")
            return bytes(value)
        if isinstance(value, str):
            encoded = _encoded(place, value, self._limit)
            return self._file(place, value) if encoded is None else encoded
        raise Rejected("image of another type", f"{place} is {type(value).__name__}")

    def _file(self, place: str, path: str) -> bytes:
        inside = self._add + path.removeprefix(self._strip)
        found = []
        for store in self._stores:
            content = store.read(inside, self._limit)
            if content is not None:
                found.append((store.name, content))
        if not found:
            names = ", ".join(store.name for store in self._stores) or "no folder is given"
            raise Rejected("image not found", f"{place}: {inside[:200]} ({names})")
        if len(found) > 1:
            names = " and ".join(name for name, _ in found)
            raise Rejected("image found twice", f"{place}: {inside} in {names}")
        return found[0][1]


def flat(value: Any) -> Iterator[Any]:
    """Yield the images of a column: of a list, or one value. Nulls and empty texts are none."""
    if isinstance(value, list | tuple):
        for item in value:
            if item is None:
                raise Rejected("image is null", "one of the row's images")
            yield item
    elif value is not None and value != "":
        yield value


def check_image(place: str, content: bytes) -> None:
    """Check that an image is complete, readable and of a usable shape.

    Raises:
        Rejected: it is not.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS):
            pass
        width, height = readable_size(content)
    except UNREADABLE as error:
        raise Rejected("unreadable image", f"{place}: {error}") from None
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise Rejected("image too long and narrow", f"{place}: {width} x {height} pixels")


def _field(place: str, value: Mapping[str, Any]) -> Any:
    for name in _FIELDS:
        if value.get(name) is not None:
            return value[name]
    raise Rejected("image has neither bytes nor a path", f"{place} has {', '.join(value)}")


def _encoded(place: str, text: str, limit: int) -> bytes | None:
    """Return the bytes of base64 or a data URL; None if the text is neither."""
    start = _DATA_URL.match(text)
    if start is None and not _BASE64.match(text):
        return None
    if start is not None and not start[1]:
        raise Rejected("image is not base64", f"{place} is {text[:60]}")
    data = text[start.end() :] if start else text
    if len(data) > 2 * limit:
        raise Rejected("image too large", f"{place} has over {limit:,} bytes")
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Rejected("image is not base64", f"{place}: {error}") from None
