"""Images decoded in full: whether every pixel can be read, and what identifies a picture."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa
import xxhash
from PIL import ExifTags, Image

from verl_prism.data.checks.images import encoded_image, readable_size, unreadable
from verl_prism.data.checks.problem import RowError
from verl_prism.data.images import MAX_ASPECT_RATIO

REMEMBERED = 1024  # images whose result is kept, since questions share images
CLIPPED = ("I", "F")  # modes whose values over 255 become white, and the 16-bit ones, I;16…
ORDINARY = ("RGB", "RGBA", "L", "1", "P")


class ImageReason(StrEnum):
    """What can be wrong with an image that Pillow reads, in few words."""

    TOO_LARGE = "image too large to decode (decompression bomb)"
    ANIMATED = "animated image"
    CLIPPED = "image with more than 8 bits per channel"
    SHAPE = "image that is too long and narrow"


class ImageNote(StrEnum):
    """What is unusual about an image, but not wrong."""

    CONVERTED = "image with unusual colors, converted to RGB"
    TRANSPARENCY = "image whose transparency is lost"
    ROTATED = "image with an EXIF rotation, which is not applied"


@dataclass(frozen=True)
class Picture:
    """What is known of an image. digest: 64 bits, the same for the same pixels."""

    width: int
    height: int
    digest: int
    notes: tuple[tuple[ImageNote, str], ...] = ()


class PictureReader:
    """Reads the items of `images`, and remembers the last ones.

    decode: decode all pixels, and identify images by them; else check only the files' structure,
        and identify images by their bytes.
    """

    def __init__(self, decode: bool) -> None:
        self._read = decoded if decode else _undecoded
        self._known: dict[bytes, Picture | tuple[str, str]] = {}

    def picture(self, place: str, image: Mapping[str, Any] | None) -> Picture:
        """Return what is known of an image. place: its place in the row, for messages.

        Raises:
            RowError: it is missing, unreadable, or of a kind that models do not see as it is.
        """
        content = encoded_image(place, image)
        key = xxhash.xxh3_128_digest(content)
        if key not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = self._new(content)
        found = self._known[key]
        if isinstance(found, Picture):
            return found
        reason, text = found
        raise RowError(reason, f"{place}{text}")

    def _new(self, content: bytes) -> Picture | tuple[str, str]:
        try:
            return self._read(content)
        except RowError as error:
            return error.reason, str(error)


def decoded(content: bytes) -> Picture:
    """Decode an image.

    Raises:
        RowError: what is wrong, to be written after the image's place.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            _check_frames(image)
            _check_mode(image)
            _check_shape(*image.size)
            if image.format == "PNG":
                _check_checksums(content)
            image.load()
            pixels = _comparable(image)
            notes = _notes(image)
    except RowError:
        raise
    except Image.DecompressionBombError as error:
        text = f": {error}; make the image smaller or remove the row"
        raise RowError(ImageReason.TOO_LARGE, text) from None
    except Exception as error:  # the decoders raise many types for damaged files
        raise unreadable("", error) from None
    digest = xxhash.xxh3_64(f"{pixels.mode} {pixels.size}".encode())
    digest.update(_pixel_bytes(pixels))
    return Picture(*pixels.size, digest.intdigest(), notes)


def _undecoded(content: bytes) -> Picture:
    try:
        size = readable_size(content)
    except Exception as error:
        raise unreadable("", error) from None
    _check_shape(*size)
    return Picture(*size, xxhash.xxh3_64_intdigest(content))


def _check_checksums(content: bytes) -> None:
    with Image.open(io.BytesIO(content)) as image:
        image.verify()


def _check_frames(image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    # MPO is a JPEG of a camera with further pictures, such as a preview.
    if frames > 1 and image.format != "MPO":
        text = f": {frames} frames, of which models see only the first; store one image per frame"
        raise RowError(ImageReason.ANIMATED, text)


def _check_mode(image: Image.Image) -> None:
    if image.mode in CLIPPED or image.mode.startswith("I;"):
        text = (
            f": mode {image.mode}, whose values over 255 would all become white; "
            "scale it to 8 bits per channel"
        )
        raise RowError(ImageReason.CLIPPED, text)


def _check_shape(width: int, height: int) -> None:
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        text = (
            f": {width} x {height} pixels: the longer side is over {MAX_ASPECT_RATIO} times the "
            "shorter one; crop the image or remove the row"
        )
        raise RowError(ImageReason.SHAPE, text)


def _comparable(image: Image.Image) -> Image.Image:
    """Return a decoded image in a mode that does not depend on the format of its file."""
    mode = "RGBA" if _transparent(image) else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _pixel_bytes(image: Image.Image) -> bytes | pa.Buffer:
    """Return the pixels of an RGB or RGBA image, without a copy unless the image is very large."""
    try:
        return pa.array(image).values.buffers()[1]
    except ValueError:  # its memory is in several blocks, which depends on its size alone
        return image.tobytes()


def _notes(image: Image.Image) -> tuple[tuple[ImageNote, str], ...]:
    notes = []
    if _transparent(image) and image.mode != "RGBA":
        notes.append((ImageNote.TRANSPARENCY, f": mode {image.mode} with transparency"))
    elif image.mode not in ORDINARY:
        notes.append((ImageNote.CONVERTED, f": mode {image.mode}"))
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in image.info else 1
    if turned != 1:
        notes.append((ImageNote.ROTATED, f": EXIF orientation {turned}"))
    return tuple(notes)


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
