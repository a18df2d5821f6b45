"""Checks of a row's messages."""

import re
from collections.abc import Mapping
from typing import Any

from verl_prism.data.checks.problem import Reason, RowError

ROLES = ("system", "user", "assistant", "tool")
LAST_ROLE = {"prompt": "user", "messages": "assistant"}
OTHER_PLACEHOLDERS = ("<video>", "<audio>")  # verl would look for a video or a sound
# Replacement characters, and control characters that no text has but wrongly decoded ones do.
GARBLED = re.compile("[\x00\x80-\x84\x86-\x9f\ufffd]")


def check_messages(row: Mapping[str, Any], column: str) -> list[Mapping[str, str]]:
    """Return the messages of a row, after a check of roles, texts and the number of images."""
    messages = row[column]
    if not messages:
        raise RowError(Reason.NO_MESSAGES, f"{column} has no message; every row needs at least one")
    for number, message in enumerate(messages):
        _check_message(f"{column}[{number}]", message)
    last, expected = messages[-1]["role"], LAST_ROLE[column]
    if last != expected:
        raise RowError(
            Reason.ROLE,
            f"{column} ends with role {last}; it should end with {expected}, because "
            + ("the model answers it" if expected == "user" else "the model learns to answer"),
        )
    _check_placeholders(messages, row.get("images") or [], column)
    return messages


def check_student_responses(row: Mapping[str, Any], at_least: int = 1) -> None:
    """Check that a row has enough responses of the policy; their format is not checked."""
    responses = row["student_responses"]
    if not responses:
        raise RowError(
            Reason.NO_RESPONSE,
            "student_responses is empty; python -m verl_prism.data sample writes responses",
        )
    if len(responses) < at_least:
        raise RowError(
            Reason.NO_RESPONSE,
            f"student_responses has {len(responses)} responses, fewer than "
            f"prism.dpo.responses_per_prompt={at_least}; lower it, or sample more",
        )
    check_no_null_response(row)


def check_no_null_response(row: Mapping[str, Any]) -> None:
    """Check that none of the policy's responses is null."""
    responses = row["student_responses"] or []
    if None in responses:
        place = f"student_responses[{responses.index(None)}]"
        raise RowError(Reason.NO_RESPONSE, f"{place} is null; leave it out of the list")


def _check_message(place: str, message: Mapping[str, Any] | None) -> None:
    if message is None:
        raise RowError(Reason.MESSAGE, f"{place} is null; it should be {{role, content}}")
    if message["role"] not in ROLES:
        raise RowError(Reason.ROLE, f"{place} has role {message['role']!r}; use {', '.join(ROLES)}")
    if not isinstance(message["content"], str):
        raise RowError(
            Reason.MESSAGE, f"{place}.content is {message['content']!r}; it should be a string"
        )


def _check_placeholders(messages: list[Mapping[str, str]], images: list[Any], column: str) -> None:
    text = "".join(message["content"] for message in messages)
    placeholders = text.count("<image>")
    if placeholders != len(images):
        raise RowError(
            Reason.PLACEHOLDERS,
            f"{placeholders} <image> in {column}, but {len(images)} in images; "
            "write one <image> for each image",
        )
    for other in OTHER_PLACEHOLDERS:
        if images and other in text:
            raise RowError(
                Reason.PLACEHOLDERS, f"{column} contains {other}; only <image> is supported"
            )
