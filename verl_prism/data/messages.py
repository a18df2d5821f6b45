"""A row's chat messages and images, as the chat template and the image processor take them."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from qwen_vl_utils import fetch_image

_IMAGE = re.compile(r"(<image>)")


def chat_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the row's `prompt` with each `<image>` as an image part, as verl's dataset does."""
    return [
        {"role": message["role"], "content": _parts(message["content"])}
        for message in row["prompt"]
    ]


def row_images(row: Mapping[str, Any], patch_size: int) -> list[Image.Image]:
    """Decode the row's images and resize them as verl's rollout does."""
    images = []
    for image in row["images"]:
        opened = Image.open(io.BytesIO(image["bytes"]))
        images.append(fetch_image({"image": opened}, patch_size))
    return images


def _parts(content: str) -> str | Sequence[dict[str, str]]:
    if "<image>" not in content:
        return content
    parts = []
    for piece in _IMAGE.split(content):
        if piece == "<image>":
            parts.append({"type": "image"})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts
