"""Lengths in tokens, counted as the policy's processor counts them but without pixels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from verl_prism.data.chat_template import ChatTemplate
from verl_prism.data.checks.models import load_tokenizer, read_json
from verl_prism.data.checks.problem import Reason, RowError
from verl_prism.data.messages import chat_messages
from verl_prism.response import View, parse_response

NEVER = r"(?!)"  # a pattern that matches nothing


@dataclass(frozen=True)
class Conversation:
    """A row's messages as text with one token per image, and the tokens of its images."""

    text: str
    image_tokens: Sequence[int]


class TokenCounter:
    """Counts the tokens of conversations with one model's chat template and tokenizer."""

    def __init__(self, key: str, model: Path) -> None:
        self._template = ChatTemplate(model)
        self._tokenizer = load_tokenizer(key, model)
        settings = read_json(f"{key}={model}", model / "config.json")
        self._image_token: int | None = settings.get("image_token_id")
        added = self._tokenizer.get_added_tokens_decoder().values()
        control = [re.escape(token.content) for token in added if token.special]
        self._control_token = re.compile("|".join(control) or NEVER)

    def conversation(
        self,
        messages: Sequence[Mapping[str, str]],
        image_tokens: Sequence[int],
        *,
        add_generation_prompt: bool,
    ) -> Conversation:
        """Render messages.

        Raises:
            RowError: a text contains a control token, or the chat template does not accept them.
        """
        for number, message in enumerate(messages):
            self._check_control_tokens(number, message["content"])
        parts = chat_messages({"prompt": messages})
        try:
            text = self._template.render(parts, add_generation_prompt=add_generation_prompt)
        except jinja2.TemplateError as error:
            raise RowError(
                Reason.CHAT_TEMPLATE, f"the model's chat template refuses the messages: {error}"
            ) from None
        return Conversation(text, image_tokens)

    def _check_control_tokens(self, number: int, text: str) -> None:
        """Refuse a text that the tokenizer would read as the end of a message or as an image."""
        found = self._control_token.search(text)
        if found:
            raise RowError(
                Reason.CONTROL_TOKEN,
                f"message {number} contains {found[0]}, a control token of the model; remove it, "
                "and write <image> for an image",
            )

    def lengths(self, conversations: Sequence[Conversation]) -> list[int | RowError]:
        """Return the number of tokens of each conversation, or what is wrong with it."""
        texts = [conversation.text for conversation in conversations]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            self._length(encoding.ids, conversation.image_tokens)
            for encoding, conversation in zip(encodings, conversations, strict=True)
        ]

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of the texts, without images."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [len(encoding) for encoding in encodings]

    def _length(self, ids: list[int], image_tokens: Sequence[int]) -> int | RowError:
        places = 0 if self._image_token is None else ids.count(self._image_token)
        if places != len(image_tokens):
            return RowError(
                Reason.PLACEHOLDERS,
                f"the model's chat template writes {places} images, but the row has "
                f"{len(image_tokens)}",
            )
        return len(ids) - places + sum(image_tokens)


class TeacherCounter:
    """Counts the tokens of the views of a teacher's responses."""

    def __init__(self, key: str, model: Path) -> None:
        self._tokenizer = load_tokenizer(key, model)
        # The discriminator reads the text of a special token as ordinary text.
        self._tokenizer.encode_special_tokens = True

    def lengths(self, responses: Sequence[str]) -> list[dict[View, int]]:
        """Return the tokens of both views of responses that are in the response format."""
        counts = {}
        parsed = [parse_response(text) for text in responses]
        for view in View:
            texts = [response.view_text(view) for response in parsed]
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            counts[view] = [len(encoding.ids) for encoding in encodings]
        return [{view: counts[view][index] for view in View} for index in range(len(parsed))]


def teacher_response(row: Mapping[str, Any]) -> str:
    """Return the teacher's response of a row, after a check of its format."""
    text = row["teacher_response"]
    if not text:
        raise RowError(
            Reason.NO_RESPONSE,
            "teacher_response is empty; every question needs the teacher's response",
        )
    fault = parse_response(text).fault
    if fault is not None:
        raise RowError(
            f"{Reason.RESPONSE_FORMAT}: {fault}",
            "teacher_response is not in the format "
            f"<caption>…</caption><think>…</think><answer>…</answer>: {fault}",
        )
    return text
