"""Ranges of numbers: `20-29`, `10% to 20%`, `between 2 and 4 hours`."""

import re
from dataclasses import dataclass

from verl_prism.rewards.grader.numeric import constant
from verl_prism.rewards.grader.quantities import ROUGHLY, Quantity, quantity, same_quantity

MAX_TERMS = 6

_BETWEEN = re.compile(r"between\s+(?P<low>.+?)\s+and\s+(?P<high>.+)", re.IGNORECASE)
_FROM = re.compile(r"from\s+(?=.*\bto\b)", re.IGNORECASE)
_TO = re.compile(r"\s+to\s+", re.IGNORECASE)
_DASH = re.compile(r"(?<=[\w%°.])\s*-\s*(?=[$€£¥₹₩]?\s*[0-9])")
_TERM = re.compile(
    r"""
    (?P<currency>[$€£¥₹₩]?)\s*
    (?P<number>[+-]?[0-9][0-9,]*(?:\.[0-9]+)?)\s*
    (?P<unit>(?:[%°]|[^\W\d_]).*|)
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Range:
    """The numbers that a range names, in their order.

    dashed: whether it is written with a dash. `3 to 4` may also be a ratio.
    """

    terms: tuple[Quantity, ...]
    dashed: bool


def number_range(text: str) -> Range | None:
    """Read `20-29`, `2 to 4 hours` or `between 5 and 6`; None for any other text.

    A dash between two plain numbers makes a range, although it could be a minus sign.
    """
    text = ROUGHLY.sub("", text)
    between = _BETWEEN.fullmatch(text)
    if between:
        return _range([between["low"], between["high"]], dashed=True)
    terms = _TO.split(_FROM.sub("", text))
    if len(terms) > 1:
        return _range(terms, dashed=False)
    return _range(_DASH.split(text), dashed=True)


def same_range(a: Range, b: Range) -> bool:
    """Return whether two ranges name the same numbers in the same order."""
    return len(a.terms) == len(b.terms) and all(map(same_quantity, a.terms, b.terms))


def range_against_number(a: str, b: str) -> bool:
    """Return whether one text is a range with a dash and the other a single number."""
    given = number_range(a)
    wanted = number_range(b)
    if given and given.dashed and not wanted:
        return quantity(b) is not None
    if wanted and wanted.dashed and not given:
        return quantity(a) is not None
    return False


def _range(terms: list[str], *, dashed: bool) -> Range | None:
    """Return the range of these terms. The first currency and the last unit apply to all terms."""
    matches = [_TERM.fullmatch(term.strip()) for term in terms]
    if not 2 <= len(matches) <= MAX_TERMS or not all(matches):
        return None
    parts = [match.groupdict() for match in matches if match]
    currency = parts[0]["currency"]
    unit = parts[-1]["unit"].strip()
    quantities = []
    for part in parts:
        if part["currency"] not in ("", currency) or part["unit"].strip() not in ("", unit):
            return None
        read = _term(currency, part["number"], unit)
        if read is None:
            return None
        quantities.append(read)
    return Range(tuple(quantities), dashed)


def _term(currency: str, number: str, unit: str) -> Quantity | None:
    """Read one term; None if its unit is a factor, as in `3-4i`."""
    if unit[:1].isalpha() and constant(number + unit) is not None:
        return None
    return quantity(f"{currency}{number} {unit}".strip())
