"""Times of day and dates."""

import re
from dataclasses import dataclass

_TIME = re.compile(
    r"(?:at\s+)?(?P<hour>[0-2]?[0-9])(?:[:.](?P<minute>[0-5][0-9])(?::(?P<second>[0-5][0-9]))?)?\s*"
    r"(?P<oclock>o'?clock)?\s*(?P<half>[ap]\.?\s?m\b\.?)?(?P<day> in the (?:morning|afternoon|evening)| at night)?",
    re.IGNORECASE,
)
_NAMES = "january february march april may june july august september october november december"
_MONTHS = _NAMES.split()
_MONTH = rf"(?P<month>{'|'.join(f'{month}|{month[:3]}' for month in _MONTHS)}|sept)\.?"
_DAY = r"(?P<day>[0-3]?[0-9])(?:st|nd|rd|th)?"
_DATES = [
    re.compile(rf"{_MONTH}\s+{_DAY}(?:\s*,\s*|\s+)(?P<year>[0-9]{{4}})", re.IGNORECASE),
    re.compile(rf"{_MONTH}\s+{_DAY}(?P<year>)", re.IGNORECASE),
    re.compile(
        rf"(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}(?:\s*,\s*|\s+)(?P<year>[0-9]{{4}})", re.IGNORECASE
    ),
    re.compile(rf"(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}(?P<year>)", re.IGNORECASE),
    re.compile(rf"{_MONTH}(?P<day>)\s*,?\s+(?P<year>[0-9]{{4}})", re.IGNORECASE),
    re.compile(r"(?P<year>[0-9]{4})-(?P<month>[01][0-9])-(?P<day>[0-3][0-9])"),
]
_WEEKDAY = re.compile(
    r"^(?:on\s+)?(?:(?:mon|tues|wednes|thurs|fri|satur|sun)day\s*,?\s+)?(?:on\s+)?", re.IGNORECASE
)


@dataclass(frozen=True)
class Time:
    """`seconds` since midnight. Where `half` is unknown it may be twelve hours later."""

    seconds: int
    half_known: bool


def time_of_day(text: str) -> Time | None:
    """`7:30`, `7:30 am`, `19:30`, `7 o'clock`, `7pm`; None for any other text, `7` among it."""
    match = _TIME.fullmatch(text)
    if not match or not (match["minute"] or match["oclock"] or match["half"]):
        return None
    if not match["half"] and not match["oclock"] and ":" not in text:
        return None  # 7.30 is a number
    hour, half = int(match["hour"]), (match["half"] or "")[:1].casefold()
    if not half and match["day"]:
        half = "a" if match["day"].casefold().endswith("morning") else "p"
    if hour > 23 or (half and not 1 <= hour <= 12):
        return None
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    seconds = 3600 * hour + 60 * int(match["minute"] or 0) + int(match["second"] or 0)
    return Time(seconds, bool(half) or hour > 12 or match["hour"].startswith("0"))


def same_time(a: Time, b: Time) -> bool:
    """`7:30` may be either half of the day, `7:30 am` and `19:30` may not."""
    if a.half_known and b.half_known:
        return a.seconds == b.seconds
    return a.seconds % 43200 == b.seconds % 43200


def date(text: str) -> tuple[str, int, int] | None:
    """Year ("" where it is left out), month and day (0 where it is left out); None for any other text."""
    text = _WEEKDAY.sub("", text)
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            name = match["month"].casefold()
            month = int(name) if name.isdigit() else 1 + [m[:3] for m in _MONTHS].index(name[:3])
            return match["year"], month, int(match["day"] or 0)
    return None


def same_date(a: tuple[str, int, int], b: tuple[str, int, int]) -> bool:
    return a == b
