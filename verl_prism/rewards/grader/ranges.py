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
_GLUED_LETTER = re.compile(r"[0-9][^\W\d_]\s*$")


@dataclass(frozen=True)
class Range:
    """The numbers that a range names, in their order.

    maybe_ratio: whether it is written as `3 to 4`.
    measured: which terms have a unit.
    maybe_formula: whether a term is a number and a letter, as in `2-3t`.
    """

    terms: tuple[Quantity, ...]
    maybe_ratio: bool
    measured: tuple[bool, ...] = ()
    maybe_formula: bool = False


def number_range(text: str) -> Range | None:
    """Read `20-29`, `2 to 4 hours` or `between 5 and 6`; None for any other text.

    A dash between two plain numbers makes a range, although it could be a minus sign.
    """
    text = ROUGHLY.sub("", text)
    between = _BETWEEN.fullmatch(text)
    if between:
        return _range([between["low"], between["high"]], maybe_ratio=False)
    terms = _TO.split(_FROM.sub("", text))
    if len(terms) > 1:
        return _range(terms, maybe_ratio=True)
    return _range(_DASH.split(text), maybe_ratio=False)


def same_range(a: Range, b: Range) -> bool:
    """Return whether two ranges name the same numbers in the same order.

    `2t-3t` and `2-3t` may be formulas, which are different.
    """
    if (a.maybe_formula or b.maybe_formula) and a.measured != b.measured:
        return False
    return len(a.terms) == len(b.terms) and all(map(same_quantity, a.terms, b.terms))


def range_against_number(answer: str, gold: str) -> bool:
    """Return whether one text is a range and the other a single number.

    `100-1` in an answer may be a difference.
    """
    given = number_range(answer)
    wanted = number_range(gold)
    if given and not wanted:
        return _rises(given) and quantity(gold) is not None
    if wanted and not given:
        return not wanted.maybe_ratio and quantity(answer) is not None
    return False


def _rises(numbers: Range) -> bool:
    if numbers.maybe_ratio or len(numbers.terms) != 2:
        return False
    low, high = numbers.terms
    return low.value.real < high.value.real


def _range(terms: list[str], *, maybe_ratio: bool) -> Range | None:
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
    return Range(
        tuple(quantities),
        maybe_ratio,
        measured=tuple(bool(part["unit"].strip()) for part in parts),
        maybe_formula=any(_GLUED_LETTER.search(term) for term in terms),
    )


def _term(currency: str, number: str, unit: str) -> Quantity | None:
    """Read one term; None if its unit is a factor, as in `3-4i`."""
    if unit[:1].isalpha() and constant(number + unit) is not None:
        return None
    return quantity(f"{currency}{number} {unit}".strip())
