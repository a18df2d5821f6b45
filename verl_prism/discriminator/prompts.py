"""From chat messages and images to the tensors of a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from verl_prism.discriminator.batch import Prompt


def encode_prompt(
    processor: Any, messages: Sequence[Mapping[str, Any]], images: Sequence[Image.Image]
) -> Prompt:
    """Apply the chat template and process the images, as the policy's rollout does.

    Args:
        processor: a Qwen3-VL processor.
        messages: chat messages with one image part for each of `images`.
    """
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=list(images) or None, return_tensors="pt")
    if not images:
        return Prompt(inputs["input_ids"][0])
    return Prompt(inputs["input_ids"][0], inputs["pixel_values"], inputs["image_grid_thw"])
