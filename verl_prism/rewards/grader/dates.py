"""Times of day and dates."""

import re
from dataclasses import dataclass

_CLOCK = r"(?P<hour>[0-2]?[0-9])(?:[:.](?P<minute>[0-5][0-9])(?::(?P<second>[0-5][0-9]))?)?"
_OCLOCK = r"(?P<oclock>o'?clock)?"
_HALF = r"(?P<half>[ap]\.?\s?m\b\.?)?"
_PART_OF_DAY = r"(?P<part> in the (?:morning|afternoon|evening)| at night)?"
_TIME = re.compile(
    rf"(?:at\s+)?{_CLOCK}\s*{_OCLOCK}\s*{_HALF}{_PART_OF_DAY}",
    re.IGNORECASE,
)
_NAMED_TIME = re.compile(r"(?:at\s+)?(?:12(?::00)?\s+)?(noon|midday|midnight)", re.IGNORECASE)
_HALF_DAY = 12 * 3600  # seconds

_NAMES = "january february march april may june july august september october november december"
_MONTHS = _NAMES.split()
_MONTH_NUMBERS = {name[:3]: number for number, name in enumerate(_MONTHS, start=1)}
_MONTH = rf"(?P<month>{'|'.join(f'{name}|{name[:3]}' for name in _MONTHS)}|sept)\.?"
_DAY = r"(?P<day>[0-3]?[0-9])(?:st|nd|rd|th)?"
_YEAR = r"(?:\s*,\s*|\s+)(?P<year>[0-9]{4})"
_DATES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_MONTH}\s+{_DAY}{_YEAR}",
        rf"{_MONTH}\s+{_DAY}(?P<year>)",
        rf"(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}{_YEAR}",
        rf"(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}(?P<year>)",
        rf"{_MONTH}(?P<day>)\s*,?\s+(?P<year>[0-9]{{4}})",
        rf"(?P<day>)(?P<year>){_MONTH}",
        r"(?P<year>[0-9]{4})([-/])(?P<month>[01][0-9])\2(?P<day>[0-3][0-9])",
    )
]
_SLASHED = re.compile(r"([0-3]?[0-9])/([0-3]?[0-9])/([0-9]{4})")
_WEEKDAY = re.compile(
    r"^(?:on\s+)?(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day\s*,?\s+)?(?:on\s+)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Time:
    """A time of day. If `half_known` is False, it may be twelve hours later."""

    seconds: int  # since midnight
    half_known: bool


@dataclass(frozen=True)
class Date:
    """A date. The year is "" and the day is 0 if they are left out.

    swappable: whether the month may be the day, as in `5/3/2020`.
    """

    year: str
    month: int
    day: int
    swappable: bool = False


def time_of_day(text: str) -> Time | None:
    """Read `7:30`, `7:30 am`, `19:30`, `7 o'clock`, `7pm` or `noon`; None for any other text."""
    if named := _NAMED_TIME.fullmatch(text):
        return Time(0 if named[1].casefold() == "midnight" else _HALF_DAY, half_known=True)
    match = _TIME.fullmatch(text)
    if not match:
        return None
    marked = bool(match["oclock"] or match["half"])
    if not marked and ":" not in text:
        return None  # 7.30 is a number
    hour = int(match["hour"])
    half = _half_of_day(match)
    if hour > 23 or (half and not 1 <= hour <= 12):
        return None
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    seconds = 3600 * hour + 60 * int(match["minute"] or 0) + int(match["second"] or 0)
    half_known = bool(half) or hour > 12 or match["hour"].startswith("0")
    return Time(seconds, half_known)


def same_time(a: Time, b: Time) -> bool:
    """Return whether two times may be the same: `7:30` is `19:30`, but `7:30 am` is not."""
    if a.half_known and b.half_known:
        return a.seconds == b.seconds
    return a.seconds % _HALF_DAY == b.seconds % _HALF_DAY


def date(text: str) -> Date | None:
    """Read `May 3, 2020`, `the 3rd of May`, `May 2020`, `May`, `2020-05-03` or `5/3/2020`.

    None for any other text.
    """
    text = _WEEKDAY.sub("", text)
    if slashed := _SLASHED.fullmatch(text):
        return _slashed_date(int(slashed[1]), int(slashed[2]), slashed[3])
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            month = match["month"].casefold()
            number = int(month) if month.isdigit() else _MONTH_NUMBERS[month[:3]]
            return Date(match["year"], number, int(match["day"] or 0))
    return None


def same_date(a: Date, b: Date) -> bool:
    """Return whether two dates are equal, in what they leave out too.

    `5/3/2020` may be in March or in May, but two dates in this notation have the same order.
    """
    if (a.year, a.month, a.day) == (b.year, b.month, b.day):
        return True
    swapped = (a.year, a.day, a.month) == (b.year, b.month, b.day)
    return swapped and a.swappable != b.swappable


def _slashed_date(first: int, second: int, year: str) -> Date | None:
    """Read two numbers as month and day, or as day and month if only that is possible."""
    if min(first, second) < 1 or min(first, second) > 12 or max(first, second) > 31:
        return None
    if first > 12:
        first, second = second, first
    return Date(year, first, second, swappable=second <= 12)


def _half_of_day(match: re.Match[str]) -> str:
    """Return "a" before noon, "p" after noon, "" if the text does not say."""
    if match["half"]:
        return match["half"][0].casefold()
    if match["part"]:
        return "a" if match["part"].casefold().endswith("morning") else "p"
    return ""
