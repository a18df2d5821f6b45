"""Metrics of the digits task: did the policy read the image right, and add up what it read?"""

import re
from typing import Any

from verl_prism.response import Response


def measure(response: Response, row: dict[str, Any]) -> dict[str, bool | None]:
    """Return perception and reasoning of one response.

    `row["extra_info"]["digits"]` are the digits in the image, from left to right.

    perception: the caption names these digits, from left to right, and no other number. False for
        an invalid response, so the rate is over all responses.
    reasoning: the answer is the sum of the numbers that the caption names, right or wrong. None if
        the response is invalid or the caption does not name as many numbers as there are digits,
        so the rate is over the remaining responses.
    """
    if not response.valid:
        return {"perception": False, "reasoning": None}
    digits = [int(digit) for digit in row["extra_info"]["digits"]]
    named = [int(number) for number in re.findall(r"[0-9]+", response.caption)]
    reasoning = response.answer == str(sum(named)) if len(named) == len(digits) else None
    return {"perception": named == digits, "reasoning": reasoning}
