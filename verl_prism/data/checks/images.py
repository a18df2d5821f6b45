"""Checks of a row's images: readable, complete, and of a usable shape."""

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image, UnidentifiedImageError

from verl_prism.data.checks.problem import Reason, RowError
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
    try:
        width, height = readable_size(encoded_image(place, image))
    except UNREADABLE as error:
        raise unreadable(place, error) from None
    return checked_tokens(place, width, height, settings)


def encoded_image(place: str, image: Mapping[str, Any] | None) -> bytes:
    """Return the bytes of an item of `images`.

    Raises:
        RowError: it has none.
    """
    content = image["bytes"] if image else None
    if content is None:
        path = image.get("path") if image else None
        kind = f"has a path ({path}) and no bytes" if path else "has no bytes"
        raise RowError(Reason.IMAGE_MISSING, f"{place} {kind}; {FORM}")
    return content


def unreadable(place: str, error: BaseException) -> RowError:
    """Return the mistake that an exception of `UNREADABLE` stands for."""
    return RowError(
        Reason.IMAGE_UNREADABLE,
        f"{place}: unreadable image ({error}); replace it or remove the row",
    )


def checked_tokens(place: str, width: int, height: int, settings: ImageSettings) -> int:
    """Return the number of tokens of an image.

    Raises:
        RowError: the image is too long and narrow.
    """
    try:
        return image_tokens(width, height, settings)
    except ValueError as error:
        raise RowError(
            Reason.IMAGE_SHAPE, f"{place}: {error}; crop the image or remove the row"
        ) from None


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
