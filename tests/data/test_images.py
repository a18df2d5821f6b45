"""Images of a row: how many, at which size, and how many tokens."""

import io
import shutil

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from qwen_vl_utils.vision_process import smart_resize as first_resize
from transformers import AutoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as second_resize

from verl_prism import config
from verl_prism.data.images import MODEL_LIMITS, ImageSettings, image_tokens, row_images
from verl_prism.errors import UserError


def encoded(width: int, height: int) -> dict[str, bytes]:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 0, 0)).save(file, "PNG")
    return {"bytes": file.getvalue()}


sides = st.integers(min_value=1, max_value=9000)
limits = st.none() | st.tuples(st.integers(65536, 400_000), st.integers(400_000, 16777216))


@given(width=sides, height=sides, limits=limits)
@example(width=4000, height=3000, limits=(65536, 1_000_000))
@example(width=6000, height=40, limits=None)
@example(width=33, height=6417, limits=None)
@settings(max_examples=300, deadline=None)
def test_tokens_are_those_of_both_resizing_libraries(width, height, limits):
    low, high = limits or (4 * 32**2, 16384 * 32**2)
    size = ImageSettings(32, low, high, 65536, 16777216)
    try:
        rows, columns = second_resize(
            *first_resize(height, width, 32, low, high), 32, min_pixels=65536, max_pixels=16777216
        )
    except (ValueError, ZeroDivisionError):
        with pytest.raises(ValueError, match=f"^{width} x {height} pixels"):
            image_tokens(width, height, size)
        return
    assert image_tokens(width, height, size) == rows * columns // 32**2


@pytest.mark.parametrize("size", [(64, 32), (300, 20), (40, 500), (7, 9)])
@pytest.mark.parametrize("limits", [{}, {"max_pixels": 4096}, {"min_pixels": 2048}])
def test_tokens_are_those_of_the_model(dense_folder, size, limits):
    limits = config.Image(**{"min_pixels": None, "max_pixels": None} | limits)
    processor = AutoProcessor.from_pretrained(dense_folder)
    images = row_images({"images": [encoded(*size)]}, 8, limits)
    ids = processor(text=["<|image_pad|>"], images=images)["input_ids"][0]
    assert image_tokens(*size, ImageSettings.of(limits, dense_folder)) == len(ids)


def test_rows_without_images_and_with_several():
    for row in ({}, {"images": None}, {"images": []}):
        assert row_images(row, 16, MODEL_LIMITS) == []
    images = row_images({"images": [encoded(64, 64), encoded(96, 64)]}, 16, MODEL_LIMITS)
    assert [image.size for image in images] == [(64, 64), (96, 64)]


def test_an_image_that_vanishes_is_refused(dense_folder):
    size = ImageSettings.of(config.Image(min_pixels=None, max_pixels=1024), dense_folder)
    with pytest.raises(ValueError, match="300 x 20 pixels: the shorter side vanishes"):
        image_tokens(300, 20, size)


def test_limits_outside_those_of_the_model_are_refused(dense_folder, tmp_path):
    with pytest.raises(UserError, match=r"prism.image.max_pixels=128 is outside .* 256 to 65536"):
        ImageSettings.of(config.Image(min_pixels=None, max_pixels=128), dense_folder)
    folder = shutil.copytree(dense_folder, tmp_path / "model")
    (folder / "processor_config.json").unlink()
    with pytest.raises(UserError, match=r"no processor_config\.json or preprocessor_config"):
        ImageSettings.of(MODEL_LIMITS, folder)


def test_an_upper_limit_below_the_default_lower_one_is_refused(dense_folder):
    with pytest.raises(UserError, match=r"max_pixels=512 is below prism.image.min_pixels=1024"):
        ImageSettings.of(config.Image(min_pixels=None, max_pixels=512), dense_folder)


def test_a_lower_limit_above_the_upper_one_is_refused():
    with pytest.raises(ValueError, match="min_pixels=9 is above max_pixels=8"):
        config.Image(min_pixels=9, max_pixels=8)
