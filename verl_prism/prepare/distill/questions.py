"""The rows of the source as questions to the teacher."""

import hashlib
import io
import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from verl_prism.data.checks.answers import check_answer
from verl_prism.data.checks.images import (
    UNREADABLE,
    encoded_image,
    readable_size,
    unreadable,
)
from verl_prism.data.checks.messages import check_messages
from verl_prism.data.checks.problem import Reason, RowError
from verl_prism.data.messages import chat_messages
from verl_prism.data.row_files import Row, read_rows, row_id
from verl_prism.prepare.distill.settings import GOLD, Settings, prompt_text
from verl_prism.rewards.score import accepted_answers

COLUMNS = ("id", "prompt", "images", "data_source", "reward_model", "extra_info")
JPEG_QUALITY = 95
PNG_MODES = ("1", "L", "LA", "I;16", "RGB", "RGBA")
# Modes that cannot be resized or written as PNG, and those that keep their transparency.
PNG_MODE_OF = {"P": "RGBA", "PA": "RGBA", "RGBa": "RGBA", "La": "LA"}
# A first guess of the size of a request; the teacher's own counts correct it.
BYTES_PER_TOKEN = 4
PIXELS_PER_TOKEN = 1024
TOKENS_PER_REQUEST = 50


@dataclass(frozen=True)
class Question:
    """A row of the source, and where it is."""

    file: Path
    number: int
    id: str
    row: Row

    @property
    def place(self) -> str:
        """File and row, for messages."""
        return f"{self.file}, row {self.number}"


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be asked: in general, and in detail."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Request:
    """The body of a request.

    units: about its number of input tokens, by a guess that is proportional to its size.
    """

    body: bytes
    units: float


def read_questions(
    files: Sequence[Path], limit: int | None, columns: Sequence[str] | None = COLUMNS
) -> Iterator[Question]:
    """Yield the rows of parquet files, at most `limit`."""
    left = limit
    for file in files:
        for number, row in enumerate(read_rows([file], columns)):
            if left == 0:
                return
            yield Question(file, number, str(row_id(row)), row)
            left = None if left is None else left - 1


def accepted(row: Row) -> list[str]:
    """Return the gold answer of a row and its equivalents; none if it has no gold answer."""
    gold = (row.get("reward_model") or {}).get("ground_truth")
    if gold is None:
        return []
    return list(accepted_answers(gold, row.get("extra_info")))


class RequestMaker:
    """Makes requests to the teacher from rows.

    The system message is the text of `prompt`, in place of the row's own. The row's other messages
    follow, with its images where their placeholders are.
    """

    def __init__(self, settings: Settings) -> None:
        self._teacher = settings.teacher
        self._prompt = prompt_text(settings.prompt)
        self._max_pixels = settings.max_image_pixels
        self._needs_gold = settings.grade or GOLD in self._prompt
        self._grade = settings.grade

    @property
    def identity(self) -> dict[str, Any]:
        """The settings on which answers depend, by their names."""
        chosen = self._teacher.model_dump(
            include={"model", "temperature", "max_tokens", "extra_body"}
        )
        identity = {f"teacher.{name}": value for name, value in chosen.items()}
        return identity | {"max_image_pixels": self._max_pixels, "prompt": self._prompt}

    def fault(self, row: Row) -> Fault | None:
        """Return why a row cannot be asked, None if it can."""
        checks = {
            "unusable prompt": lambda: check_messages(row, "prompt"),
            "unusable image": lambda: _check_images(row, self._max_pixels),
            "no usable gold answer": lambda: self._check_gold(row),
        }
        for reason, check in checks.items():
            try:
                check()
            except RowError as error:
                return Fault(reason, str(error))
        return None

    def digest(self, row: Row) -> str:
        """Return a digest of what the teacher sees of a row."""
        digest = hashlib.sha256(json.dumps(self._messages(row)).encode())
        for image in row.get("images") or []:
            digest.update(hashlib.sha256(image["bytes"]).digest())
        return digest.hexdigest()

    def request(self, row: Row) -> Request:
        """Return the request for a row that has no fault."""
        messages = self._messages(row)
        units = TOKENS_PER_REQUEST + len(json.dumps(messages)) / BYTES_PER_TOKEN
        images = iter(row.get("images") or [])
        for message in messages:
            if isinstance(message["content"], str):
                continue
            for part in message["content"]:
                if part["type"] == "image":
                    url, pixels = self._data_url(next(images)["bytes"])
                    part |= {"type": "image_url", "image_url": {"url": url}}
                    units += pixels / PIXELS_PER_TOKEN
        return Request(json.dumps(self._fields() | {"messages": messages}).encode(), units)

    def _messages(self, row: Row) -> list[dict[str, Any]]:
        system = self._prompt
        if GOLD in system:
            system = system.replace(GOLD, accepted(row)[0])
        own = [message for message in chat_messages(row) if message["role"] != "system"]
        return [{"role": "system", "content": system}, *own]

    def _fields(self) -> dict[str, Any]:
        teacher = self._teacher
        fields = {"model": teacher.model, teacher.max_tokens_field: teacher.max_tokens}
        if teacher.temperature is not None:
            fields["temperature"] = teacher.temperature
        return fields | teacher.extra_body

    def _data_url(self, content: bytes) -> tuple[str, int]:
        """Return an image as a data URL, and its number of pixels."""
        content, kind, pixels = self._sent(content)
        mime = "image/jpeg" if kind == "MPO" else Image.MIME[kind]  # MPO: a JPEG of some cameras
        url = f"data:{mime};base64,{b64encode(content).decode()}"
        return url, pixels

    def _sent(self, content: bytes) -> tuple[bytes, str, int]:
        """Return an image as it is sent, its format and its number of pixels."""
        with Image.open(io.BytesIO(content)) as image:
            kind = image.format or "PNG"
            if self._max_pixels is not None and _is_larger(image, self._max_pixels):
                return _shrunk(image, self._max_pixels)
            return content, kind, image.width * image.height

    def _check_gold(self, row: Row) -> None:
        if not self._needs_gold:
            return
        if not accepted(row):
            hint = "; grade=false keeps answers ungraded" if self._grade else ""
            raise RowError(Reason.GOLD_ANSWER, f"reward_model.ground_truth is missing{hint}")
        check_answer({**row, "data_source": ""}, needs_gold=True)


def _check_images(row: Row, max_pixels: int | None) -> None:
    """Check that images can be sent, and that those with over `max_pixels` can be shrunk."""
    for number, image in enumerate(row.get("images") or []):
        place = f"images[{number}]"
        content = encoded_image(place, image)
        try:
            readable_size(content)
            with Image.open(io.BytesIO(content)) as opened:
                kind = opened.format
                if max_pixels is not None and _is_larger(opened, max_pixels):
                    _check_shrinkable(opened)
        except UNREADABLE as error:
            raise unreadable(place, error) from None
        if kind not in Image.MIME:
            raise RowError(
                Reason.IMAGE_UNREADABLE, f"{place} is a {kind} image; write it as PNG or JPEG"
            )


def _is_larger(image: Image.Image, max_pixels: int) -> bool:
    return image.width * image.height > max_pixels


def _check_shrinkable(image: Image.Image) -> None:
    """Check the mode of an image, and that all of it can be decoded.

    Raises:
        UNREADABLE: it cannot be decoded, or a smaller copy would lose most of its values.
    """
    if image.mode != "I;16" and image.mode.startswith(("I", "F")):
        raise ValueError(
            f"mode {image.mode}, which cannot be shrunk; scale it to 8 bits per channel"
        )
    image.draft(image.mode, (1, 1))  # an eighth of the size, if it is a JPEG: less work
    image.load()


def _shrunk(image: Image.Image, max_pixels: int) -> tuple[bytes, str, int]:
    """Return an image with at most `max_pixels` pixels: a JPEG stays one, others become PNG."""
    scale = (max_pixels / (image.width * image.height)) ** 0.5
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    kind = "JPEG" if image.format in ("JPEG", "MPO") else "PNG"
    modes = ("L", "RGB") if kind == "JPEG" else PNG_MODES
    mode = image.mode if image.mode in modes else "RGB"
    if kind == "PNG" and image.mode in PNG_MODE_OF:
        mode = PNG_MODE_OF[image.mode]
    smaller = image.convert(mode).resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, kind, quality=JPEG_QUALITY)
    return buffer.getvalue(), kind, size[0] * size[1]
