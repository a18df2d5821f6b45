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


def question_text(row: Mapping[str, Any]) -> str:
    """Return what the user asks in a question (`prompt`) or a demonstration (`messages`)."""
    messages = row["prompt"] or row["messages"] or ()
    asked = [message["content"] for message in messages if message["role"] == "user"]
    return "\n".join(asked).replace("<image>", "").strip()


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
