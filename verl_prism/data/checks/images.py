"""Checks of a row's images: readable, complete, and of a usable shape."""

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image, UnidentifiedImageError

from verl_prism.data.checks.problem import RowError
from verl_prism.data.images import ImageSettings, image_tokens

FORM = 'store the encoded file: {"bytes": open(path, "rb").read()}'
JPEG_END = b"\xff\xd9"
TAIL_BYTES = 1024  # some cameras write a few bytes after the end of a JPEG
UNREADABLE = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
)


def check_images(row: Mapping[str, Any], settings: ImageSettings) -> list[int]:
    """Return the number of tokens of each image of a row.

    Raises:
        RowError: an image is missing, unreadable, or too long and narrow.
    """
    images = row.get("images") or []
    return [_tokens(f"images[{number}]", image, settings) for number, image in enumerate(images)]


def _tokens(place: str, image: Mapping[str, Any] | None, settings: ImageSettings) -> int:
    content = image["bytes"] if image else None
    if content is None:
        path = image.get("path") if image else None
        kind = f"has a path ({path}) and no bytes" if path else "has no bytes"
        raise RowError(f"{place} {kind}; {FORM}")
    try:
        width, height = readable_size(content)
    except UNREADABLE as error:
        message = f"{place}: unreadable image ({error}); replace it or remove the row"
        raise RowError(message) from None
    try:
        return image_tokens(width, height, settings)
    except ValueError as error:
        raise RowError(f"{place}: {error}; crop the image or remove the row") from None


def readable_size(content: bytes) -> tuple[int, int]:
    """Return width and height of an encoded image, after a check that it is complete.

    A PNG has checksums, and a JPEG has an end marker. Only without these are pixels decoded.

    Raises:
        UNREADABLE: it is not complete, or no image.
    """
    with Image.open(io.BytesIO(content)) as image:
        size = image.size
        if image.format == "PNG":
            image.verify()
        elif image.format != "JPEG" or JPEG_END not in content[-TAIL_BYTES:]:
            image.load()
    return size
