"""The possible outcomes of asking a judge.

A module of its own, because the judge's client library takes a second to import.
"""

from enum import StrEnum


class Opinion(StrEnum):
    """The judge's verdict on an answer, or why there is none."""

    NOT_ASKED = "rules suffice"
    RIGHT = "right"
    WRONG = "wrong"
    UNREADABLE = "reply is no verdict"
    REFUSED = "endpoint refuses the request"
    DOWN = "endpoint is down"
    OVER_BUDGET = "budget is spent"

    @property
    def settled(self) -> bool:
        """Whether the answer has a verdict, by the judge or by the rules."""
        return self in (Opinion.NOT_ASKED, Opinion.RIGHT, Opinion.WRONG)
