"""Words, caption items and reasoning steps of a text."""

import re

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts in which a character counts as a word
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]|\n+")
# A line that starts with a bullet, or with a number and a dot or parenthesis.
_ITEM = re.compile(r"^[ \t]*(?:[-*+•‣·\u2013]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)
_STEP = re.compile(r"^[ \t>#*_]*step[ \t]*\d", re.MULTILINE | re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[。\uff01\uff1f\n]")


def words(text: str) -> list[str]:
    """Return the words and numbers of a text. A Chinese, Japanese or Korean character is a word."""
    return _WORD.findall(text)


def tokens(text: str) -> list[str]:
    """Return the words, numbers, punctuation marks and line ends of a text, in their order."""
    return _TOKEN.findall(text)


def count_items(text: str) -> int:
    """Return the number of list items or, without a list, of sentences and lines; at least 1."""
    items = len(_ITEM.findall(text))
    return items or max(1, _count_sentences(text))


def count_steps(text: str) -> int:
    """Return the number of lines that start with `Step N`; without any, the number of items."""
    steps = len(_STEP.findall(text))
    return steps or count_items(text)


def _count_sentences(text: str) -> int:
    return sum(bool(words(part)) for part in _SENTENCE_END.split(text))
