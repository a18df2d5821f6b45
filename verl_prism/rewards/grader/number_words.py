"""Numbers in words: `twenty-one`, `two hundred and fifty`, `three and a half`, `a dozen`."""

import re
from collections.abc import Callable
from fractions import Fraction

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {word: number for number, word in enumerate(_ONES.split())}
NUMBER_WORDS |= {word: 10 * number for number, word in enumerate(_TENS.split(), start=2)}
SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_PARTS = {
    "half": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "tenth": 10,
}
_AND_A_PART = re.compile(
    rf"(?<=[0-9])\s+and\s+(?:a|one)[\s-]+({'|'.join(_PARTS)})\b", re.IGNORECASE
)
_MAX_CHARACTERS = 200

_Leading = tuple[int | None, int]  # a number, and how many words spell it


def words_to_digits(text: str) -> str:
    """Turn `twenty-one apples` into `21 apples`, `two thirds` into `2/3`, `half` into `1/2`."""
    if not text[:1].isalpha():
        return _AND_A_PART.sub(_mixed, text)
    words = re.split(r"[\s-]+", text[:_MAX_CHARACTERS])
    number, used = _leading_number([word.casefold() for word in words])
    if number is None:
        return text
    return " ".join([str(number), *words[used:]])


def _mixed(match: re.Match[str]) -> str:
    """Return ` and 1/2` for ` and a half`."""
    return f" and 1/{_PARTS[match[1].casefold()]}"


def _leading_number(words: list[str]) -> tuple[Fraction | None, int]:
    """Return the number that begins `words`, and the number of words that spell it."""
    total, used = _leading_integer(words)
    if total is None:
        return _leading_part(words)
    rest = words[used:]
    part = rest[0].removesuffix("s").replace("halve", "half") if rest else ""
    if part in _PARTS:
        return Fraction(total, _PARTS[part]), used + 1
    if len(rest) > 1 and rest[0] == "and":
        fraction, count = _leading_number(rest[1:])
        if fraction is not None and fraction < 1 and fraction.denominator > 1:
            return total + fraction, used + 1 + count
    return Fraction(total), used


def _leading_integer(words: list[str]) -> _Leading:
    """Read `two thousand three hundred and one`. A scale at the end is left to the caller."""
    total, used = _below_thousand(words)
    if total is None or words[used : used + 1] == ["hundred"]:  # `one hundred and two hundred`
        return None, 0
    if words[used : used + 1] == ["thousand"]:
        rest, count = _after_and(words[used + 1 :], _below_thousand)
        if rest is not None:
            return 1000 * total + rest, used + 1 + count
    return total, used


def _below_thousand(words: list[str]) -> _Leading:
    total, used = _below_hundred(words)
    if total is None or words[used : used + 1] != ["hundred"]:
        return total, used
    used += 1
    rest, count = _after_and(words[used:], _below_hundred)
    return 100 * total + (rest or 0), used + count


def _after_and(words: list[str], read: Callable[[list[str]], _Leading]) -> _Leading:
    """Read a number after an optional `and`."""
    skipped = int(words[:1] == ["and"])
    number, count = read(words[skipped:])
    return (None, 0) if number is None else (number, skipped + count)


def _below_hundred(words: list[str]) -> _Leading:
    if len(words) > 1 and words[0] == "a" and words[1] in SCALES:  # `a dozen`
        return 1, 1
    if not words or words[0] not in NUMBER_WORDS:
        return None, 0
    total = NUMBER_WORDS[words[0]]
    ones = NUMBER_WORDS.get(words[1], 0) if len(words) > 1 else 0
    if total >= 20 and 1 <= ones <= 9:
        return total + ones, 2
    return total, 1


def _leading_part(words: list[str]) -> tuple[Fraction | None, int]:
    """Read `a third` or `half of`."""
    if words[0] == "a" and len(words) > 1 and words[1] in _PARTS:
        return Fraction(1, _PARTS[words[1]]), 2
    if words[0] == "half" and (len(words) == 1 or words[1] in ("of", "a", "an")):
        return Fraction(1, 2), 1
    return None, 0
