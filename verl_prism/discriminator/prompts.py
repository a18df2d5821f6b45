"""From a data row to a tokenised prompt, with the chat template and image processing that the policy's rollout uses."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from qwen_vl_utils import fetch_image

from verl_prism.discriminator.batch import Prompt

_IMAGE = re.compile(r"(<image>)")


def chat_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row's `prompt` with each `<image>` as the chat template's image part, as verl's dataset makes it."""
    return [{"role": message["role"], "content": _parts(message["content"])} for message in row["prompt"]]


def row_images(row: Mapping[str, Any], patch_size: int) -> list[Image.Image]:
    """The row's images, resized as verl's rollout resizes them."""
    return [fetch_image({"image": Image.open(io.BytesIO(image["bytes"]))}, patch_size) for image in row["images"]]


def tokenize_prompt(processor, row: Mapping[str, Any]) -> Prompt:
    """A row of the alignment data as the tensors of its prompt."""
    text = processor.apply_chat_template(chat_messages(row), add_generation_prompt=True, tokenize=False)
    images = row_images(row, processor.image_processor.patch_size)
    inputs = processor(text=[text], images=images or None, return_tensors="pt")
    if not images:
        return Prompt(inputs["input_ids"][0])
    return Prompt(inputs["input_ids"][0], inputs["pixel_values"], inputs["image_grid_thw"])


def _parts(content: str) -> str | Sequence[dict[str, str]]:
    if "<image>" not in content:
        return content
    pieces = [piece for piece in _IMAGE.split(content) if piece]
    return [{"type": "image"} if piece == "<image>" else {"type": "text", "text": piece} for piece in pieces]
