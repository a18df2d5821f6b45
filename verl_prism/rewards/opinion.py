"""What a judge can say of an answer. Apart from the judge, whose client library takes a second to import."""

from enum import StrEnum


class Opinion(StrEnum):
    """What came of an answer, or why there is no verdict on it."""

    NOT_ASKED = "rules suffice"
    RIGHT = "right"
    WRONG = "wrong"
    UNREADABLE = "reply is no verdict"
    REFUSED = "endpoint refuses the request"
    DOWN = "endpoint is down"
    OVER_BUDGET = "budget is spent"

    @property
    def settled(self) -> bool:
        return self in (Opinion.NOT_ASKED, Opinion.RIGHT, Opinion.WRONG)
