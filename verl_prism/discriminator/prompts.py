"""From chat messages and images to the tensors of a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from verl_prism.discriminator.batch import Prompt

Messages = Sequence[Mapping[str, Any]]


def prompt_text(processor: Any, messages: Messages) -> str:
    """Apply the chat template. The text has one placeholder for each image."""
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def encode_prompt(processor: Any, messages: Messages, images: Sequence[Image.Image]) -> Prompt:
    """Apply the chat template and process the images, as the policy's rollout does.

    Args:
        processor: a Qwen3-VL processor.
        messages: chat messages with one image part for each of `images`.
    """
    text = prompt_text(processor, messages)
    inputs = processor(text=[text], images=list(images) or None, return_tensors="pt")
    if not images:
        return Prompt(inputs["input_ids"][0])
    return Prompt(inputs["input_ids"][0], inputs["pixel_values"], inputs["image_grid_thw"])
