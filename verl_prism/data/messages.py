"""A row's chat messages, as the chat template takes them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_IMAGE = re.compile(r"(<image>)")


def chat_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the row's `prompt` with each `<image>` as an image part, as verl's dataset does."""
    return [
        {"role": message["role"], "content": _parts(message["content"])}
        for message in row["prompt"]
    ]


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
