"""A question of a benchmark, and what the readers of all benchmarks share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

Row = Mapping[str, Any]

IMAGE = "<image>"
NO_GOLD = ("", "?")  # what published test splits have in place of a gold answer


class LeftOut(Exception):
    """A row cannot be used, as expected for some published rows. The message is the reason."""


class BadValue(Exception):
    """A value is not what the benchmark publishes."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(column, problem)
        self.column = column
        self.problem = problem


@dataclass(frozen=True)
class Question:
    """A question of a benchmark.

    name: unique within the benchmark.
    text: the user message, with `<image>` for each of `images`.
    equivalents: further gold answers.
    facts: what the measures need; becomes part of `extra_info`.
    notes: what a reader of the report should know about the row.
    """

    name: str
    text: str
    images: tuple[bytes, ...]
    gold: str
    facts: Mapping[str, Any]
    equivalents: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def required_text(row: Row, column: str) -> str:
    """Return a text that no row may lack.

    Raises:
        BadValue: it is null.
        LeftOut: it contains our placeholder for an image.
    """
    text = row[column]
    if text is None:
        raise BadValue(column, "is null, but should be a text")
    if IMAGE in text:
        raise LeftOut(f"{column} contains {IMAGE}, which stands for an image in our rows")
    return text


def required_struct(row: Row, column: str) -> Row:
    """Return a struct that no row may lack.

    Raises:
        BadValue: it is null.
    """
    if row[column] is None:
        raise BadValue(column, "is null, but should be a struct")
    return row[column]


def gold_answer(row: Row, column: str = "answer") -> str:
    """Return the gold answer.

    Raises:
        LeftOut: the row has none, as in test splits.
    """
    answer = (row[column] or "").strip()
    if answer in NO_GOLD:
        raise LeftOut("no gold answer")
    return answer


def image_bytes(row: Row, column: str) -> bytes:
    """Return an image as the file that the published set contains.

    Raises:
        LeftOut: the row has none.
    """
    image = row[column]
    if image is None or not image["bytes"]:
        raise LeftOut(f"no image in column {column}")
    return image["bytes"]


def lettered(options: Sequence[str]) -> str:
    """Return the options as `A. text`, each on its own line."""
    lines = [
        f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)
    ]
    return "\n".join(lines)


def option_of(letter: str, options: Sequence[str]) -> str:
    """Return the text of the option with this letter.

    Raises:
        BadValue: there is no such option.
    """
    letters = list(ascii_uppercase[: len(options)])
    if letter not in letters:
        raise BadValue("answer", f"is {letter!r}, but the options are {', '.join(letters)}")
    return options[letters.index(letter)]


def with_letter(letter: str, option: str) -> tuple[str, ...]:
    """Return the forms of a gold option that count besides its letter.

    The text of the option is never a gold answer by itself. Otherwise `A. 4` would be right if the
    text of option D is 4.
    """
    text = option.strip()
    return (f"({letter}) {text}", f"{letter}. {text}")
