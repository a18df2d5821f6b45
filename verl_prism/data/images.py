"""A row's images: as verl's datasets take them, decoded and resized, and counted in tokens."""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from verl_prism import config
from verl_prism.errors import UserError

# The resizing of the package `qwen_vl_utils`, through which verl reads every image.
DEFAULT_MIN_TOKENS = 4
DEFAULT_MAX_TOKENS = 16384
MAX_ASPECT_RATIO = 200
MODEL_LIMITS = config.Image(min_pixels=None, max_pixels=None)
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def limited_images(row: Mapping[str, Any], limits: config.Image) -> list[dict[str, Any]]:
    """Return the row's images as verl's datasets take them, with `limits` on their size.

    A row without images has a null, an empty list, or no such column.
    """
    sizes = {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
    given = {name: pixels for name, pixels in sizes.items() if pixels is not None}
    images = row.get("images") or []
    return [{"bytes": image["bytes"], **given} for image in images]


def row_images(row: Mapping[str, Any], patch_size: int, limits: config.Image) -> list[Image.Image]:
    """Decode the row's images and resize them as verl's rollout does."""
    from qwen_vl_utils import fetch_image  # imports torch

    images = []
    for image in limited_images(row, limits):
        opened = Image.open(io.BytesIO(image.pop("bytes")))
        images.append(fetch_image({"image": opened, **image}, patch_size))
    return images


def image_sizes(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return width and height of the row's images in pixels, without decoding them."""
    sizes = []
    for image in row.get("images") or []:
        with Image.open(io.BytesIO(image["bytes"])) as opened:
            sizes.append(opened.size)
    return sizes


@dataclass(frozen=True)
class ImageSettings:
    """How a model's images are resized and cut into tokens."""

    token_side: int  # of the square that is one token, in pixels
    min_pixels: int  # limits of the first resize, which `prism.image` sets
    max_pixels: int
    model_min_pixels: int  # limits of the second resize, by the model's image processor
    model_max_pixels: int

    @classmethod
    def of(cls, limits: config.Image, model: Path) -> "ImageSettings":
        """Return the settings for the Hugging Face folder `model`.

        Raises:
            UserError: a limit is outside those of the model, so it would have no effect.
        """
        processor = image_processor(model)
        side = processor["patch_size"] * processor["merge_size"]
        lowest = processor["size"]["shortest_edge"]  # a number of pixels, despite the name
        highest = processor["size"]["longest_edge"]
        for key, pixels in limits.model_dump().items():
            if pixels is not None and not lowest <= pixels <= highest:
                raise UserError(
                    f"prism.image.{key}={pixels} is outside the limits of the image processor in "
                    f"{model}, {lowest} to {highest} pixels; choose a value between them, or null"
                )
        min_pixels = limits.min_pixels or DEFAULT_MIN_TOKENS * side**2
        max_pixels = limits.max_pixels or DEFAULT_MAX_TOKENS * side**2
        if min_pixels > max_pixels:
            raise UserError(
                f"prism.image.max_pixels={max_pixels} is below prism.image.min_pixels={min_pixels} "
                f"({DEFAULT_MIN_TOKENS} tokens, if it is null); raise the first or lower the second"
            )
        return cls(
            token_side=side,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            model_min_pixels=lowest,
            model_max_pixels=highest,
        )


def image_tokens(width: int, height: int, settings: ImageSettings) -> int:
    """Return the number of prompt tokens of an image, from its size alone.

    Raises:
        ValueError: the image is too long and narrow for the model, with what is wrong.
    """
    ratio = max(width, height) / min(width, height)
    if ratio > MAX_ASPECT_RATIO:
        raise ValueError(
            f"{width} x {height} pixels: the longer side is {ratio:.0f} times the shorter one; "
            f"at most {MAX_ASPECT_RATIO} times is possible"
        )
    side = settings.token_side
    first = _resized(height, width, side, settings.min_pixels, settings.max_pixels)
    if 0 in first:
        raise ValueError(
            f"{width} x {height} pixels: the shorter side vanishes when the image is resized to "
            f"{settings.max_pixels} pixels; raise prism.image.max_pixels"
        )
    ratio = max(first) / min(first)
    if ratio > MAX_ASPECT_RATIO:
        raise ValueError(
            f"{width} x {height} pixels: the longer side is {ratio:.0f} times the shorter one once "
            f"both are multiples of {side}; at most {MAX_ASPECT_RATIO} times is possible"
        )
    second = _resized(*first, side, settings.model_min_pixels, settings.model_max_pixels)
    rows, columns = (max(side, length) // side for length in second)
    return rows * columns


def _resized(
    height: int, width: int, side: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Return height and width as multiples of `side`, between the limits, in about this ratio."""
    rows = max(1, round(height / side))
    columns = max(1, round(width / side))
    pixels = rows * columns * side**2
    if pixels > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = math.floor(height / shrink / side)
        columns = math.floor(width / shrink / side)
    elif pixels < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / side)
        columns = math.ceil(width * grow / side)
    return rows * side, columns * side


def image_processor(model: Path) -> dict[str, Any]:
    """Return the settings of a model's image processor.

    Raises:
        UserError: the folder has none.
    """
    for name in PROCESSOR_FILES:
        if (model / name).is_file():
            content = json.loads((model / name).read_text(encoding="utf-8"))
            return content.get("image_processor", content)
    names = " or ".join(PROCESSOR_FILES)
    raise UserError(f"{model}: no {names}; copy it from the base model")
