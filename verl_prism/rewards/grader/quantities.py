"""Quantities: a number with its unit, currency or noun. Also ratios of numbers."""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from verl_prism.rewards.grader.arithmetic import Value
from verl_prism.rewards.grader.number_words import NUMBER_WORDS, SCALES, words_to_digits
from verl_prism.rewards.grader.numeric import close, constant
from verl_prism.rewards.grader.units import DEGREES, Unit, units

_PLAIN = re.compile(r"[+-]?[0-9]{1,100}(?:\.[0-9]{1,100})?")
ROUGHLY = re.compile(
    r"""
    ^(?:
        (?:about|approximately|approx\.?|roughly|around|exactly|precisely|just|only
        |equals?|equal\ to|a\ total\ of|total\ of|value\ of)\s+
        |[≈~=]\s*
    )+
    """,
    re.IGNORECASE | re.VERBOSE,
)
_MINUS = re.compile(r"(?:minus|negative)\s+(?=[^\s+-])", re.IGNORECASE)
_OUT_OF = re.compile(r"(?<=[0-9])\s+out\s+of\s+(?=[0-9])", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(
    r"(?P<whole>[+-]?[0-9]{1,3}(?:\.[0-9]{3})*),(?P<part>[0-9]{1,2}|[0-9]{4,})(?P<unit>[^0-9,]*)"
)
_THOUSANDS = re.compile(r"(?<![0-9.,])([0-9]{1,3})((?:,[0-9]{3})+|(?: [0-9]{3})+)(?![0-9]|,[0-9])")
_LAKHS = re.compile(r"(?<![0-9.,])([0-9]{1,2})((?:,[0-9]{2})+,[0-9]{3})(?![0-9,])")
_CURRENCY = re.compile(
    r"^([+-]?)\s*(US\$|[$€£¥₹₩]|USD|EUR|GBP|INR|CNY|JPY|RMB|Rs\.?)\s*(?=[-+0-9.(√\\])"
)
_PERCENT = re.compile(
    r"\s*(?:%|(?:percent(?:age)?|per cent|pct)\b)(?:\s*points?\b)?", re.IGNORECASE
)
_SCALE = re.compile(rf"\s*\b({'|'.join(SCALES)})s?\b(?:\s+of\b)?", re.IGNORECASE)
_UNIT_STARTS = re.compile(r"(?<=[0-9)}\]π%.!])\s*(?=[^\W\d_]|[°$€£¥₹₩¢])")
_MAX_UNIT_STARTS = 6
_ANGLE_FUNCTION = re.compile(r"(?:sin|cos|tan|cot|sec|csc)")
_NO_UNIT = re.compile(  # `5 square units of area`
    r"""
    (?:square|sq\.?|cubic|cu\.?)?\s*
    units?\s*
    (?:\^?\s*\{?[23]\}?|squared|cubed)?
    (?:\s+of\s+\w+)?
    """,
    re.IGNORECASE | re.VERBOSE,
)
_INCHES = re.compile(r"(?<=[0-9])\s*''$")
_FEET = re.compile(r"([0-9]+)\s*'\s*([0-9.]+)\s*(?:\"|'')")
_MINUTES = re.compile(r"(?<=[0-9])(\s*h\s*[0-9]+\s*)m(?!\w)")
_COMPOUND = re.compile(
    r"([0-9]+(?:\.[0-9]+)?)\s*([^\W\d_]+\.?|[°'\"$€£])(?:\s*,\s*|\s+and\s+|\s+)?", re.IGNORECASE
)
_NOUN = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
_NO_NOUN_WORDS = (
    "or and to not no plus minus times than over is are was were be pi if nor vs by between else"
    " but"
)
_FILLER_WORDS = "of the a an in total all altogether each there"
_FILLERS = set(_FILLER_WORDS.split())
_NO_MEASURES = ("in", "a", "A", "at")  # units, but words before a noun: `in total`
_PLURALS = {
    "people": "person",
    "children": "child",
    "men": "man",
    "women": "woman",
    "feet": "foot",
    "mice": "mouse",
}
MAX_NOUN_WORDS = 5
MAX_UNIT_WORDS = 3
_NO_NOUNS = {*_NO_NOUN_WORDS.split(), *NUMBER_WORDS}
_RATIO = re.compile(r"\s*(?::|\bto\b)\s*")
_RATIO_WORD = re.compile(r"^(?:the\s+)?ratio\s+(?:of|is)\s+|\s+ratio$", re.IGNORECASE)
_FRACTION = re.compile(r"\s*/\s*")
MAX_RATIO_TERMS = 6

_Measure = tuple[tuple[Unit, ...], frozenset[str]]  # units and noun of a Quantity


@dataclass(frozen=True)
class Quantity:
    """A number with what it measures or counts.

    units: the possible meanings of its unit, () if it has none.
    noun: the words for what is counted, in the singular.
    """

    value: Value
    units: tuple[Unit, ...] = ()
    noun: frozenset[str] = frozenset()


def quantity(text: str) -> Quantity | None:
    """Read a number with what is measured or counted; None for any other text.

    `5`, `about $1,000`, `21 apples`, `5 ft 3 in` and `2.5 million people` are quantities.
    """
    if _PLAIN.fullmatch(text):
        return Quantity(Fraction(text))
    text = ROUGHLY.sub("", text)
    if negative := _MINUS.match(text):
        text = "-" + words_to_digits(text[negative.end() :])
    else:
        text = words_to_digits(text)
    text = _OUT_OF.sub("/", join_digits(text))
    currency = _CURRENCY.match(text)
    if not currency:
        return _measured(text)
    amount = _measured(currency[1] + text[currency.end() :])
    if amount is None:
        return None
    return Quantity(amount.value, units(currency[2]), amount.noun)


def join_digits(text: str) -> str:
    """Remove the thousands separators of numbers: `1,000` and `1 000` become `1000`."""
    if "," not in text and " " not in text:
        return text
    text = _THOUSANDS.sub(_without_separators, text)
    return _LAKHS.sub(_without_separators, text)


def decimal_comma(text: str) -> str:
    """Return `12.5 cm` for `12,5 cm`, "" for any other text."""
    match = _DECIMAL_COMMA.fullmatch(text)
    if not match:
        return ""
    return match["whole"].replace(".", "") + "." + match["part"] + match["unit"]


def same_quantity(a: Quantity, b: Quantity) -> bool:
    """Return whether two quantities are equal: `1 km` is `1000 m`.

    A unit or a noun may be left out on one side.
    """
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
    """Return the terms of `3:4`, `3 to 4`, `3/4`, `1:2:3` or `3:4 ratio`; None for other texts."""
    terms = _RATIO.split(join_digits(_RATIO_WORD.sub("", text)))
    if len(terms) == 1 and text.count("/") == 1:
        terms = _FRACTION.split(text)
    if not 2 <= len(terms) <= MAX_RATIO_TERMS:
        return None
    values = []
    for term in terms:
        value = constant(term)
        if value is None or isinstance(value, complex) or value == 0:
            return None
        values.append(value)
    return tuple(values)


def same_ratio(a: tuple[Value, ...], b: tuple[Value, ...]) -> bool:
    """Return whether two ratios are equal: 3:4 is 6:8."""
    if len(a) != len(b):
        return False
    return all(close(x * b[0], y * a[0]) for x, y in zip(a, b, strict=True))


def _without_separators(number: re.Match[str]) -> str:
    return number[0].replace(",", "").replace(" ", "")


def _measured(text: str) -> Quantity | None:
    """Read a quantity without its currency sign."""
    text = _PERCENT.sub("%", text)
    scale = _SCALE.search(text)
    if scale:
        return _scaled(text, scale)
    is_temperature_or_angle = "°" in text and not _ANGLE_FUNCTION.search(text)
    value = None if is_temperature_or_angle else constant(text)
    if value is not None:
        return Quantity(value)
    for start in islice(_UNIT_STARTS.finditer(text), _MAX_UNIT_STARTS):
        glued = start.end() == start.start()
        measure = _measure(text[start.end() :].strip(), glued)
        if measure is None:
            continue
        value = constant(text[: start.start()])
        if value is not None:
            return Quantity(value, *measure)
    return _sum_of_units(text)


def _scaled(text: str, scale: re.Match[str]) -> Quantity | None:
    """Read `2.5 million people`, where `scale` is the match of `million`."""
    counted = _measured(text[: scale.start()] + " " + text[scale.end() :])
    if counted is None:
        return None
    size = SCALES[scale[1].casefold()]
    return Quantity(counted.value * size, counted.units, counted.noun)


def _measure(text: str, glued: bool) -> _Measure | None:
    """Read the unit or the noun after a number; None for anything else.

    glued: whether no space separates it from the number, so that it is not a noun.
    """
    if known := units(text):
        return known, frozenset()
    if _NO_UNIT.fullmatch(text):
        return (), frozenset()
    words = text.split()
    for count in range(min(len(words) - 1, MAX_UNIT_WORDS), 0, -1):  # `cm long`, `kg of rice`
        known = units(" ".join(words[:count]))
        if known and words[0] not in _NO_MEASURES and _noun(words[count:]) is not None:
            return known, frozenset()
    if glued or (len(words[0]) < 3 and words[0] not in _FILLERS):
        return None
    noun = _noun(words)
    return None if noun is None else ((), noun)


def _noun(words: list[str]) -> frozenset[str] | None:
    """Return the singular of the words that name what is counted; None if they name nothing."""
    if len(words) > MAX_NOUN_WORDS:
        return None
    noun = set()
    for word in words:
        folded = word.casefold()
        if not _NOUN.fullmatch(folded) or folded in _NO_NOUNS:
            return None
        if folded not in _FILLERS:
            noun.add(_singular(folded))
    return frozenset(noun)


def _singular(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    stem = word if word.endswith("ss") else word.removesuffix("s")
    if stem.endswith(("xe", "she", "che", "sse")):
        return stem.removesuffix("e")
    return stem


def _sum_of_units(text: str) -> Quantity | None:
    """Read units of one dimension, each smaller than the one before it.

    `1 h 30 min`, `5'3"` and `12 dollars and 50 cents` are such sums.
    """
    text = _MINUTES.sub(r"\1min", text)
    text = _FEET.sub(r"\1 ft \2 in", text)
    text = _INCHES.sub('"', text)
    total = 0.0
    last: Unit | None = None
    position = 0
    while position < len(text):
        part = _COMPOUND.match(text, position)
        if not part:
            return None
        known = units(part[2])
        if not known:
            return None
        unit = known[0]
        if last and (unit.dimension != last.dimension or unit.factor >= last.factor):
            return None
        last = unit
        position = part.end()
        total += float(part[1]) * unit.factor
    return Quantity(total, (Unit(1.0, last.dimension),)) if last else None


def _same_measure(a: Value, unit: Unit, b: Value, other: Unit) -> bool:
    if unit == other:
        return close(a, b)
    if unit.dimension == other.dimension:
        return close(_in_base_units(a, unit), _in_base_units(b, other))
    # `30°` may be a temperature
    is_temperature = DEGREES in (unit, other) and bool(unit.offset or other.offset)
    return is_temperature and close(a, b)


def _in_base_units(value: Value, unit: Unit) -> Value:
    """Return a value in base units. An exact value stays exact, so that 1e-31 kg is not 0 g."""
    if isinstance(value, Fraction) and not unit.offset:
        return value * Fraction(unit.factor)
    return value * unit.factor + unit.offset


def _in_radians(a: Quantity, b: Quantity) -> bool:
    """Return whether `b`, a bare number, is the angle `a` in radians."""
    return DEGREES in a.units and close(a.value * DEGREES.factor, b.value)
