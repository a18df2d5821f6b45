"""Texts of a row: messages, the question with its options, the gold answer, demonstrations."""

import ast
import json
import re
from collections.abc import Mapping, Sequence, Sized
from decimal import Decimal
from typing import Any

from verl_prism.prepare.convert.columns import ANSWERERS
from verl_prism.prepare.convert.records import Rejected
from verl_prism.response import parse_response

IMAGE = "<image>"
ROLES = {"human": "user", "user": "user", "system": "system", "tool": "tool"}
ROLES |= dict.fromkeys(ANSWERERS, "assistant")
IMAGE_PARTS = ("image", "image_url", "input_image")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABELED = re.compile(r"\s*\(?([A-Za-z])[.):]\s*(\S.*)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])[.):]?")
_NUMBER = re.compile(r"\d{1,2}")
_WRAPPED = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:caption|think|answer)>")

Message = dict[str, str]


def text_of(what: str, value: Any) -> str:
    """Return a text that has to be there.

    Raises:
        Rejected: it is missing or no text.
    """
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise Rejected(f"{what} is not a text", kind)
    if not value.strip():
        raise Rejected(f"{what} is empty")
    return value


def messages_of(value: Any) -> tuple[list[Message], list[Any]]:
    """Return messages as {role, content}, and the images that stand inside them.

    value: messages as {from, value} or {role, content}. A content is a text or a list of parts,
        in which each image becomes an `<image>`.

    Raises:
        Rejected: it is no list of messages.
    """
    if not isinstance(value, list) or not value:
        raise Rejected("no messages", f"it is {type(value).__name__}, or empty")
    messages = []
    images: list[Any] = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise Rejected("wrong message", f"message {number} is {type(message).__name__}")
        role = message.get("role", message.get("from"))
        if not isinstance(role, str) or role not in ROLES:
            raise Rejected("unknown role", f"message {number} has role {role!r}")
        content, inside = _content(number, message.get("content", message.get("value")))
        messages.append({"role": ROLES[role], "content": content})
        images += inside
    return messages, images


def _content(number: int, content: Any) -> tuple[str, list[Any]]:
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        found = "null" if content is None else type(content).__name__
        raise Rejected("message without a text", f"message {number} is {found}")
    texts: list[str] = []
    images: list[Any] = []
    for part in content:
        kind: Any = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind == "text":
            texts.append(text_of("part of a message", part.get("text")))
        elif kind in IMAGE_PARTS:
            texts.append(IMAGE)
            if any(part.get(name) for name in (*IMAGE_PARTS, "url", "path", "bytes")):
                images.append({name: item for name, item in part.items() if name != "type"})
        else:
            raise Rejected("unknown part of a message", f"message {number} has {kind!r}")
    return "".join(texts), images


def options_of(value: Any) -> dict[str, str]:
    """Return the texts of options by their letters; nothing if there are none.

    value: a list of texts, with or without letters, a mapping of letters to texts, or one of them
        written as JSON or Python.

    Raises:
        Rejected: it is something else.
    """
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, Mapping):
        texts = {str(key): str(text) for key, text in value.items() if text is not None}
    elif isinstance(value, list) and all(_simple(item) for item in value):
        _check_number(value)
        texts = _lettered([str(item) for item in value])
    else:
        raise Rejected("options are not a list of texts", repr(value)[:100])
    _check_number(texts)
    return texts


def _check_number(options: Sized) -> None:
    if len(options) > len(LETTERS):
        raise Rejected("too many options", f"{len(options)}, more than letters")


def _simple(item: Any) -> bool:
    return isinstance(item, str | int | float | Decimal) and not isinstance(item, bool)


def _parsed(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise Rejected("options are not a list of texts", text[:100])


def _lettered(texts: Sequence[str]) -> dict[str, str]:
    """Give letters to options, unless they have them."""
    matches = [_LABELED.fullmatch(text) for text in texts]
    labels = [match[1].upper() if match else None for match in matches]
    if labels == list(LETTERS[: len(texts)]):
        return {match[1].upper(): match[2].strip() for match in matches if match}
    return dict(zip(LETTERS[: len(texts)], texts, strict=True))


def with_options(question: str, options: Mapping[str, str]) -> str:
    """Return a question with one line for each option: "Options:", "A. 12", …."""
    if not options:
        return question
    lines = [f"{letter}. {text}" for letter, text in options.items()]
    return "\n".join([question.rstrip(), "Options:", *lines])


def gold_of(value: Any, options: Mapping[str, str], first_index: int | None) -> str:
    """Return the gold answer as a text.

    value: a text, perhaps in `<answer>` tags, a number, a list of one of these, or a mapping with
        `ground_truth`. A number stays as it is written, unless it counts the options. A text that
        is a number also counts them, unless it is the text of an option.
    first_index: from where a number counts the options; None: such a number is refused.

    Raises:
        Rejected: there is no gold answer, or it is something else.
    """
    if isinstance(value, Mapping) and "ground_truth" in value:
        value = value["ground_truth"]
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Rejected("no gold answer")
    if isinstance(value, int) and not isinstance(value, bool) and options:
        return _by_index(value, options, first_index)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise Rejected("gold answer is not a text", repr(value)[:100])
    wrapped = _WRAPPED.fullmatch(value)
    text = wrapped[1].strip() if wrapped else value
    if _counts_options(text.strip(), options, first_index):
        return _by_index(int(text), options, first_index)
    return text


def _counts_options(text: str, options: Mapping[str, str], first: int | None) -> bool:
    if not options or text in options or not _NUMBER.fullmatch(text):
        return False
    if int(text) > len(options):
        return False
    named = [letter for letter, option in options.items() if option.strip() == text]
    if not named:
        return True
    if first is None or not 0 <= int(text) - first < len(options):
        return False
    if named != [_by_index(int(text), options, first)]:
        raise Rejected("gold answer is the number of one option and the text of another", text)
    return False


def _by_index(value: int, options: Mapping[str, str], first: int | None) -> str:
    if first is None:
        raise Rejected(
            "gold answer is a number beside options",
            f"{value}; set answer_index=0 or 1 if it counts the options; else give the full text "
            "of an option as the answer, or set columns.options=null",
        )
    if not 0 <= value - first < len(options):
        raise Rejected("gold answer is not among the options", str(value))
    return list(options)[value - first]


def other_forms(gold: str, options: Mapping[str, str]) -> list[str]:
    """Return the text of the gold letter, or the letter of the gold text, if there is one.

    The text is left out if it is the letter of another option.

    Raises:
        Rejected: the gold answer is the letter of one option and the text of another.
    """
    letters = [key for key, text in options.items() if text.strip() == gold.strip()]
    letter = _letter(gold, options)
    if letter is None:
        return letters if len(letters) == 1 else []
    if letters not in ([], [letter]):
        raise Rejected("gold answer is the letter of one option and the text of another", gold)
    text = options[letter]
    return [text] if _letter(text, options) in (None, letter) else []


def _letter(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option that a text such as "B", "(b)" or "B." names."""
    found = _LETTER.fullmatch(text.strip())
    return found[1].upper() if found and found[1].upper() in options else None


def joined_response(caption: Any, reasoning: Any, answer: str | None) -> str:
    """Return a response from its parts, with the tags that they lack.

    Args:
        caption: the caption, with or without its tags.
        reasoning: the reasoning, with or without its tags, and perhaps with the answer block.
        answer: the answer, if `reasoning` has no answer block.

    Raises:
        Rejected: a part is missing, or the answer.
    """
    caption = text_of("caption", caption).strip()
    reasoning = text_of("reasoning", reasoning).strip()
    if not _TAG.search(caption):
        caption = f"<caption>{caption}</caption>"
    think, opening, rest = reasoning.partition("<answer>")
    if not opening and answer is None:
        raise Rejected("answer tag is missing", "the reasoning has no <answer>…</answer>")
    if not _TAG.search(think):
        think = f"<think>{think.strip()}</think>"
    block = f"<answer>{rest}" if opening else f"<answer>{answer}</answer>"
    return f"{caption}{think}{block}"


def check_response(what: str, text: str) -> None:
    """Check that a response is in the response format.

    Raises:
        Rejected: it is not.
    """
    fault = parse_response(text).fault
    if fault is not None:
        raise Rejected(f"{what} not in the response format", str(fault))
