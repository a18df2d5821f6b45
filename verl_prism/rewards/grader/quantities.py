"""Quantities: a number with its unit, currency or noun, and ratios of numbers."""

import re
from dataclasses import dataclass
from fractions import Fraction

from verl_prism.rewards.grader.arithmetic import Value
from verl_prism.rewards.grader.numeric import close, constant
from verl_prism.rewards.grader.units import DEGREES, Unit, units

_PLAIN = re.compile(r"[+-]?[0-9]{1,100}(?:\.[0-9]{1,100})?")
_ROUGHLY = re.compile(
    r"^(?:(?:about|approximately|approx\.?|roughly|around|exactly|precisely|just|only|equals?|equal to"
    r"|a total of|total of|value of)\s+|[≈~=]\s*)+",
    re.IGNORECASE,
)
_THOUSANDS = re.compile(r"(?<![0-9.,])([0-9]{1,3})((?:,[0-9]{3})+|(?: [0-9]{3})+)(?![0-9]|,[0-9])")
_LAKHS = re.compile(r"(?<![0-9.,])([0-9]{1,2})((?:,[0-9]{2})+,[0-9]{3})(?![0-9,])")
_CURRENCY = re.compile(
    r"^([+-]?)\s*(US\$|[$€£¥₹₩]|USD|EUR|GBP|INR|CNY|JPY|RMB|Rs\.?)\s*(?=[-+0-9.(√\\])"
)
_PERCENT = re.compile(
    r"\s*(?:%|(?:percent|per cent|pct)\b)(?:\s*(?:age)?\s*points?\b)?", re.IGNORECASE
)
_SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_SCALE = re.compile(rf"\s*\b({'|'.join(_SCALES)})s?\b(?:\s+of\b)?", re.IGNORECASE)
_UNIT_STARTS = re.compile(r"(?<=[0-9)}\]π%.!])\s*(?=[^\W\d_]|[°$€£¥₹₩¢])")
_ANGLE_FUNCTION = re.compile(r"(?:sin|cos|tan|cot|sec|csc)")
_NO_UNIT = re.compile(
    r"(?:square|sq\.?|cubic|cu\.?)?\s*units?\s*(?:\^?\s*\{?[23]\}?|squared|cubed)?(?:\s+of\s+\w+)?",
    re.IGNORECASE,
)
_FEET = re.compile(r"([0-9]+)\s*'\s*([0-9.]+)\s*(?:\"|'')")
_MINUTES = re.compile(r"(?<=[0-9])(\s*h\s*[0-9]+\s*)m(?!\w)")
_COMPOUND = re.compile(
    r"([0-9]+(?:\.[0-9]+)?)\s*([^\W\d_]+\.?|[°'\"$€£])(?:\s*,\s*|\s+and\s+|\s+)?", re.IGNORECASE
)
_NOUN = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_NO_NOUNS = " or and to not no plus minus times than over is are was were be pi if nor vs by between else but "
_FILLERS = " of the a an in total all altogether each there "
_PLURALS = {
    "people": "person",
    "children": "child",
    "men": "man",
    "women": "woman",
    "feet": "foot",
    "mice": "mouse",
}
MAX_NOUN_WORDS = 5

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
_ONES += "seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_WORDS = {word: i for i, word in enumerate(_ONES.split())}
_NUMBER_WORDS |= {word: 20 + 10 * i for i, word in enumerate(_TENS.split())}
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
_RATIO = re.compile(r"\s*(?::|\bto\b)\s*")
_FRACTION = re.compile(r"\s*/\s*")


@dataclass(frozen=True)
class Quantity:
    """`units`: the meanings of its unit, () without one. `noun`: the words for what is counted, in the singular."""

    value: Value
    units: tuple[Unit, ...] = ()
    noun: frozenset[str] = frozenset()


def quantity(text: str) -> Quantity | None:
    """`text` as a number with what is measured or counted; None for any other text."""
    if _PLAIN.fullmatch(text):
        return Quantity(Fraction(text))
    text = _ROUGHLY.sub("", text)
    text = join_digits(_spelled_out(text) if text[:1].isalpha() else text)
    currency = _CURRENCY.match(text)
    if currency:
        paid = _measured(currency[1] + text[currency.end() :])
        known = units(currency[2])
        return paid and Quantity(paid.value, known, paid.noun)
    return _measured(text)


def join_digits(text: str) -> str:
    """Numbers without their thousands separators: `1,000` and `1 000` are `1000`."""
    if "," not in text and " " not in text:
        return text
    text = _THOUSANDS.sub(lambda m: m[1] + m[2].replace(",", "").replace(" ", ""), text)
    return _LAKHS.sub(lambda m: m[1] + m[2].replace(",", ""), text)


def same_quantity(a: Quantity, b: Quantity) -> bool:
    """A unit or a noun may be left out. Where both have one, the measures must agree, not the spellings."""
    if a.noun and b.noun and not (a.noun <= b.noun or b.noun <= a.noun):
        return False
    if a.units and b.units:
        return any(_same_measure(a.value, x, b.value, y) for x in a.units for y in b.units)
    if (a.units and b.noun) or (b.units and a.noun):
        return False
    if close(a.value, b.value):
        return True
    return _in_radians(a, b) or _in_radians(b, a)


def ratio(text: str) -> tuple[Value, ...] | None:
    """`3:4`, `3 to 4`, `3/4` and `1:2:3` as their terms."""
    terms = _RATIO.split(text)
    if len(terms) == 1 and text.count("/") == 1:
        terms = _FRACTION.split(text)
    values = [constant(term) for term in terms] if 2 <= len(terms) <= 6 else []
    if not values or any(
        value is None or isinstance(value, complex) or value == 0 for value in values
    ):
        return None
    return tuple(value for value in values if value is not None)


def same_ratio(a: tuple[Value, ...], b: tuple[Value, ...]) -> bool:
    return len(a) == len(b) and all(close(x * b[0], y * a[0]) for x, y in zip(a, b, strict=True))


def _measured(text: str) -> Quantity | None:
    text = _PERCENT.sub("%", text)
    scale = _SCALE.search(text)
    if scale:
        counted = _measured(text[: scale.start()] + " " + text[scale.end() :])
        size = _SCALES[scale[1].casefold()]
        return counted and Quantity(counted.value * size, counted.units, counted.noun)
    degrees = "°" in text and not _ANGLE_FUNCTION.search(text)
    value = None if degrees else constant(text)
    if value is not None:
        return Quantity(value)
    for start, _ in zip(_UNIT_STARTS.finditer(text), range(6), strict=False):
        number, rest = text[: start.start()], text[start.end() :]
        what = _what(rest.strip(), glued=start.end() == start.start())
        value = constant(number) if what else None
        if what and value is not None:
            return Quantity(value, *what)
    return _sum_of_units(text)


def _what(text: str, glued: bool) -> tuple[tuple[Unit, ...], frozenset[str]] | None:
    """The unit or the noun after a number; None for anything else."""
    if known := units(text):
        return known, frozenset()
    if _NO_UNIT.fullmatch(text):
        return (), frozenset()
    words = text.split()
    for count in range(
        min(len(words) - 1, 3), 0, -1
    ):  # `cm long`, `kg of rice`, but not `in total`
        known = units(" ".join(words[:count]))
        if known and words[0] not in ("in", "a", "A", "at") and _noun(words[count:]) is not None:
            return known, frozenset()
    noun = (
        None if glued or (len(words[0]) < 3 and f" {words[0]} " not in _FILLERS) else _noun(words)
    )
    return None if noun is None else ((), noun)


def _noun(words: list[str]) -> frozenset[str] | None:
    folded = [word.casefold() for word in words]
    plain = len(words) <= MAX_NOUN_WORDS and all(_NOUN.fullmatch(word) for word in folded)
    if not plain or any(f" {word} " in _NO_NOUNS or word in _NUMBER_WORDS for word in folded):
        return None
    return frozenset(_singular(word) for word in folded if f" {word} " not in _FILLERS)


def _singular(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    stem = word.removesuffix("s") if not word.endswith("ss") else word
    return stem.removesuffix("e") if stem.endswith(("xe", "she", "che", "sse")) else stem


def _sum_of_units(text: str) -> Quantity | None:
    """`1 h 30 min`, `5'3"`, `12 dollars and 50 cents`: units of one dimension, each smaller than the last."""
    text = _FEET.sub(r"\1 ft \2 in", _MINUTES.sub(r"\1min", text))
    total, last, position = 0.0, None, 0
    while position < len(text):
        part = _COMPOUND.match(text, position)
        known = units(part[2]) if part else ()
        if (
            not part
            or not known
            or (last and (known[0].dimension != last.dimension or known[0].factor >= last.factor))
        ):
            return None
        last, position = known[0], part.end()
        total += float(part[1]) * last.factor
    return Quantity(total, (Unit(1.0, last.dimension),)) if last else None


def _same_measure(a: Value, unit: Unit, b: Value, other: Unit) -> bool:
    if unit == other:
        return close(a, b)
    if unit.dimension != other.dimension:
        return (
            DEGREES in (unit, other) and bool(unit.offset or other.offset) and close(a, b)
        )  # `30°` of warmth
    return close(a * unit.factor + unit.offset, b * other.factor + other.offset)


def _in_radians(a: Quantity, b: Quantity) -> bool:
    """Whether a bare number is the angle in radians."""
    return DEGREES in a.units and close(a.value * DEGREES.factor, b.value)


def _spelled_out(text: str) -> str:
    """`twenty-one apples` as `21 apples`, `two thirds` as `2/3`, `half` as `1/2`."""
    words = re.split(r"[\s-]+", text[:200])
    number, used = _leading_number([word.casefold() for word in words])
    if number is None:
        return text
    return " ".join([str(number), *words[used:]])


def _leading_number(words: list[str]) -> tuple[Fraction | None, int]:
    total, used = None, 0
    for word in words:
        if word in _NUMBER_WORDS and (
            total is None or (total % 10 == 0 and _NUMBER_WORDS[word] < 10 and total > 10)
        ):
            total = (total or 0) + _NUMBER_WORDS[word]
        elif word == "hundred" and total:
            total *= 100
        else:
            break
        used += 1
    if used == 0 and words[0] in ("a", "one") and len(words) > 1 and words[1] in _PARTS:
        return Fraction(1, _PARTS[words[1]]), 2
    if used == 0 and words[0] == "half" and (len(words) == 1 or words[1] in ("of", "a", "an")):
        return Fraction(1, 2), 1
    if total is None:
        return None, 0
    part = words[used].removesuffix("s").replace("halve", "half") if used < len(words) else ""
    return (Fraction(total, _PARTS[part]), used + 1) if part in _PARTS else (Fraction(total), used)
