"""A mistake in a row, before its place is known."""

from enum import StrEnum


class Reason(StrEnum):
    """What can be wrong with a row, in few words, to count rows by."""

    NO_MESSAGES = "no messages"
    MESSAGE = "message without a text"
    ROLE = "wrong role"
    PLACEHOLDERS = "placeholders that do not match the images"
    CONTROL_TOKEN = "control token in a text"
    CHAT_TEMPLATE = "messages that the chat template refuses"
    IMAGE_MISSING = "image without bytes"
    IMAGE_UNREADABLE = "unreadable image"
    IMAGE_SHAPE = "image that is too long and narrow"
    DATA_SOURCE = "data_source is not a string"
    GOLD_ANSWER = "gold answer missing or not a string"
    EQUIVALENT_ANSWERS = "wrong equivalent_answers"
    NO_RESPONSE = "no response"
    RESPONSE_FORMAT = "response not in the format"


class RowError(Exception):
    """What is wrong with a row and how to fix it; the message starts with the column.

    reason: the same in few words, usually a `Reason`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
