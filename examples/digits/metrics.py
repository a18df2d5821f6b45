"""What the digits task counts beyond a right answer: was the picture read right, and was the sum right as read."""

import re
from typing import Any

from verl_prism.response import Response


def measure(response: Response, row: dict[str, Any]) -> dict[str, bool | None]:
    """Perception and reasoning of one response; `row["extra_info"]["digits"]` are the digits in the picture.

    perception: the caption names these digits, from left to right, and no other number. An invalid response names
        nothing, so the rate of perception is over all responses.
    reasoning: the answer is the sum of the numbers that the caption names, be they right or wrong. None where the
        response is invalid or does not name as many numbers as there are digits, so its rate is over the others.
    """
    if not response.valid:
        return {"perception": False, "reasoning": None}
    digits = [int(digit) for digit in row["extra_info"]["digits"]]
    named = [int(number) for number in re.findall(r"[0-9]+", response.caption)]
    reasoning = response.answer == str(sum(named)) if len(named) == len(digits) else None
    return {"perception": named == digits, "reasoning": reasoning}
