"""Metrics of the digits tasks: is the image read right, and does the answer follow from it?"""

import re
import sys
from pathlib import Path
from typing import Any

from verl_prism.response import Response, parse_response

sys.path.insert(0, str(Path(__file__).parent))  # the stage loads this file by its path
from tasks import BiasedRow, Question, right_result


def measure(response: Response, row: dict[str, Any]) -> dict[str, bool | None]:
    """Return perception and reasoning of one response; for the task `row`, grounded too.

    `row["extra_info"]` has the question that `data.py` asked.

    perception: the caption names the digits in the image, from left to right, and no other number.
        False for an invalid response, so the rate is over all responses.
    reasoning: the answer is right for the numbers that the caption names, right or wrong, and in
        the task `row` so is each step. None if the response is invalid or the caption does not name
        as many numbers as there are digits, so the rate is over the remaining responses.
    grounded: both. A right answer that is not grounded was guessed, or two errors made up for each
        other. The rate is over all responses.
    """
    asked = row["extra_info"]
    marks = _marks(response, asked)
    if asked["task"] == "row":
        marks["grounded"] = bool(marks["perception"] and marks["reasoning"])
    return marks


def _marks(response: Response, asked: dict[str, Any]) -> dict[str, bool | None]:
    if not response.valid:
        return {"perception": False, "reasoning": None}
    digits = [int(digit) for digit in asked["digits"]]
    named = _numbers(response.caption)
    if len(named) != len(digits):
        return {"perception": False, "reasoning": None}
    question = Question(asked["kind"], tuple(named), tuple(_numbers(asked["options"])))
    reasoning = response.answer == question.answer(right_result(question.kind, named))
    if asked["task"] == "row":
        expected = parse_response(BiasedRow().teacher(question))
        reasoning = reasoning and _numbers(response.think) == _numbers(expected.think)
    return {"perception": named == digits, "reasoning": reasoning}


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]+", text)]
