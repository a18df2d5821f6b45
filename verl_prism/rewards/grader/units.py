"""Units of measurement: what a unit is worth in base units, and of which dimension it is.

A table of our own: an answer needs some hundred spellings, among them `cents` and `square feet`, to be read in
microseconds, and a units library brings a parser of Python-like expressions, a registry to load and neither.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

Dimension = tuple[tuple[str, int], ...]  # base units and their exponents, sorted; no zeros


@dataclass(frozen=True)
class Unit:
    """One of it is `factor` base units above `offset` of them: a kilometre is 1000 m, 0 °C is 273.15 K."""

    factor: float
    dimension: Dimension
    offset: float = 0.0

    def __mul__(self, other: "Unit") -> "Unit":
        exponents = dict(self.dimension)
        for base, exponent in other.dimension:
            exponents[base] = exponents.get(base, 0) + exponent
        return Unit(self.factor * other.factor, _dimension(exponents))

    def __pow__(self, exponent: int) -> "Unit":
        exponents = {base: exponent * own for base, own in self.dimension}
        return Unit(
            self.factor**exponent, _dimension(exponents), self.offset if exponent == 1 else 0.0
        )


def _dimension(exponents: dict[str, int]) -> Dimension:
    return tuple(sorted((base, exponent) for base, exponent in exponents.items() if exponent))


# factor, dimension, spellings. A spelling with an upper-case letter, or of one or two letters, is meant to the letter.
_TABLE = f"""
1          m          m meter meters metre metres
0.0254     m          in inch inches
0.3048     m          ft foot feet
0.9144     m          yd yard yards
1609.344   m          mi mile miles
1852       m          nmi
1e-10      m          Å angstrom angstroms
9.4607304725808e15 m  ly light-year light-years lightyear lightyears
1e-3       kg         g gram grams gramme grammes gm gms
1e3        kg         t tonne tonnes ton tons
0.45359237 kg         lb lbs pound pounds
0.028349523125 kg     oz ounce ounces
1          s          s sec secs second seconds
60         s          min mins minute minutes
3600       s          h hr hrs hour hours
86400      s          day days
604800     s          week weeks wk wks
1          month      month months mo
12         month      year years yr yrs
120        month      decade decades
1200       month      century centuries
1          K          K kelvin kelvins
1          mol        mol mole moles
1          cd         cd candela
1          A          A amp amps ampere amperes
1          rad        rad radian radians
{math.pi / 180} rad        ° deg degree degrees
{2 * math.pi}   rad        revolution revolutions
1e4        m2         ha hectare hectares
4046.8564224 m2       acre acres
1e-3       m3         L l liter liters litre litres
3.785411784e-3 m3     gal gallon gallons
9.46352946e-4 m3      qt quart quarts
4.73176473e-4 m3      pint pints
2.365882365e-4 m3     cup cups
1          kg,m,s-2   N newton newtons
1          kg,m2,s-2  J joule joules
4.184      kg,m2,s-2  cal calorie calories
1.602176634e-19 kg,m2,s-2 eV electronvolt electronvolts
3600       kg,m2,s-2  Wh
1          kg,m2,s-3  W watt watts
745.69987158227 kg,m2,s-3 hp horsepower
1          kg,m-1,s-2 Pa pascal pascals
1e5        kg,m-1,s-2 bar bars
101325     kg,m-1,s-2 atm atmosphere atmospheres
133.322387415 kg,m-1,s-2 mmHg
6894.757293168 kg,m-1,s-2 psi
1          s-1        Hz hertz
{2 * math.pi / 60}    rad,s-1    rpm
1          A,s        C coulomb coulombs
1          kg,m2,s-3,A-1 V volt volts
1          kg,m2,s-3,A-2 Ω ohm ohms
1          kg-1,m-2,s4,A2 F farad farads
1          kg,m2,s-2,A-2 H henry henries
1          kg,s-2,A-1 T tesla teslas
1          kg,m2,s-2,A-1 Wb weber webers
1e3        mol,m-3    M molar
1          bit        bit bits b
8          bit        byte bytes B
0.44704    m,s-1      mph
{1 / 3.6}    m,s-1      kph kmh kmph
0.514444444444444 m,s-1 knot knots kn
1          $          $ dollar dollars USD usd US$ buck bucks
0.01       $          ¢ cent cents
1          €          € euro euros EUR eur
1          £          £ GBP gbp
0.01       £          pence penny p
1          ¥          ¥ yen JPY jpy
1          CNY        yuan CNY cny RMB rmb
1          ₹          ₹ rupee rupees INR inr Rs Rs.
1          ₩          ₩ won KRW
"""

_PREFIXES = {
    "p": 1e-12,
    "n": 1e-9,
    "µ": 1e-6,
    "u": 1e-6,
    "m": 1e-3,
    "c": 1e-2,
    "d": 1e-1,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
}
_PREFIX_WORDS = {
    "pico": 1e-12,
    "nano": 1e-9,
    "micro": 1e-6,
    "milli": 1e-3,
    "centi": 1e-2,
    "deci": 1e-1,
    "kilo": 1e3,
    "mega": 1e6,
    "giga": 1e9,
    "tera": 1e12,
}
_PREFIXED = " m g s A K L l N J cal W V Ω Hz Pa C F H T Wb M bit b B bar eV Wh mol rad "
_PREFIXED_WORDS = {
    "meter",
    "metre",
    "gram",
    "gramme",
    "second",
    "liter",
    "litre",
    "newton",
    "joule",
    "calorie",
    "watt",
}
_PREFIXED_WORDS |= {
    "volt",
    "ohm",
    "hertz",
    "pascal",
    "coulomb",
    "farad",
    "henry",
    "tesla",
    "amp",
    "ampere",
    "bit",
}
_PREFIXED_WORDS |= {"byte", "mole", "electronvolt"}


_SPELLINGS = _TABLE.replace("\n", " ")


def _entries() -> Iterator[tuple[str, Unit]]:
    for line in _TABLE.strip().splitlines():
        factor, dimension, *spellings = line.split()
        exponents = {}
        for base in dimension.split(","):
            name, exponent = re.fullmatch(r"([^\d-]+)(-?\d*)", base).groups()  # type: ignore[union-attr]
            exponents[name] = int(exponent or 1)
        unit = Unit(float(factor), _dimension(exponents))
        for spelling in spellings:
            yield spelling, unit
            if f" {spelling} " in _PREFIXED:
                yield from (
                    (prefix + spelling, Unit(size * unit.factor, unit.dimension))
                    for prefix, size in _SIZES
                )
            elif spelling.removesuffix("s") in _PREFIXED_WORDS:
                for word, size in _PREFIX_WORDS.items():
                    yield word + spelling, Unit(size * unit.factor, unit.dimension)


_SIZES = tuple(_PREFIXES.items())
_UNITS: dict[str, Unit] = dict(_entries())
_UNITS |= {
    spelling: unit for spelling, unit in _entries() if f" {spelling} " in _SPELLINGS
}  # `min` is a minute
_KELVIN = (("K", 1),)
_CELSIUS, _FAHRENHEIT = Unit(1.0, _KELVIN, 273.15), Unit(5 / 9, _KELVIN, 459.67 * 5 / 9)
_UNITS |= dict.fromkeys(("°C", "°c", "celsius", "centigrade", "degC"), _CELSIUS)
_UNITS |= dict.fromkeys(("°F", "°f", "fahrenheit", "degF"), _FAHRENHEIT)
_COMMON = {"kg", "cm", "km", "ml", "lb", "ft", "oz", "hz", "hr", "kj"}
_CASES: dict[str, set[Unit]] = {}
for _spelling, _unit in _UNITS.items():
    _CASES.setdefault(_spelling.casefold(), set()).add(_unit)
_ANY_CASE = {
    name: min(units, key=id)
    for name, units in _CASES.items()
    if len(units) == 1 and (len(name) > 2 or name in _COMMON)
}
# A spelling of two meanings is either: `C` of a charge or a temperature, `pounds` of a mass or a currency.
_SECOND_MEANINGS = {"C": _CELSIUS, "F": _FAHRENHEIT, "pound": _UNITS["£"], "pounds": _UNITS["£"]}
DEGREES = _UNITS["°"]

_PART = re.compile(
    r"\s*(?:(?P<word>°\s*[CFcf]\b|US\$|[^\W\d_]+(?:-years?)?\.?|[°$€£¥₹₩¢])"
    r"|\^\s*\{?\s*(?P<exponent>-?[1-4])\s*\}?(?![0-9])|(?P<sign>[*/()]))|(?<=[^\W\d_])(?P<glued>-?[1-4])(?![0-9])"
)


@lru_cache(maxsize=1024)
def units(text: str) -> tuple[Unit, ...]:
    """The unit that `text` names, or both if it may mean two; () if it names none: `m/s^2`, `square meters`, `$`."""
    text = re.sub(r"^U\.?S\.?\s+(?=dollar)", "", text.strip())
    known = _lookup(text)
    if known is None:
        known = _compound(text)
    if known is None:
        return ()
    second = _SECOND_MEANINGS.get(text)
    return (known, second) if second else (known,)


def _lookup(word: str) -> Unit | None:
    word = "".join(word.split()) if word[:1] == "°" else word
    return (
        _UNITS.get(word)
        or _UNITS.get(word.removesuffix("."))
        or _ANY_CASE.get(word.removesuffix(".").casefold())
    )


def _compound(text: str) -> Unit | None:
    """A product of units from left to right; `/` and `per` divide by the next unit or bracket."""
    text = re.sub(
        r"\bdeg(?:ree)?s?\s+(celsius|centigrade|fahrenheit|[CF])\b",
        r"°\1",
        text,
        flags=re.IGNORECASE,
    )
    text = re.sub(r"°(celsius|centigrade)", "°C", text, flags=re.IGNORECASE).replace(
        "°fahrenheit", "°F"
    )
    total, last, sign, in_bracket, power, position = Unit(1.0, ()), Unit(1.0, ()), 1, False, 1, 0
    found = False
    while position < len(text):
        part = _PART.match(text, position)
        if not part:
            return None
        position = part.end()
        word, exponent = part["word"], part["exponent"] or part["glued"]
        if part["sign"]:
            in_bracket = part["sign"] == "(" or (in_bracket and part["sign"] != ")")
            sign = -1 if part["sign"] == "/" else sign if in_bracket else 1
        elif exponent or word.casefold() in ("squared", "cubed"):
            total = (
                total
                * last ** (-1)
                * last ** (int(exponent) if exponent else 2 + (word.casefold() == "cubed"))
            )
            last = Unit(1.0, ())
        elif word.casefold() in ("per", "a", "an"):
            sign = -1 if word.casefold() == "per" or found else sign
        elif word.casefold().removesuffix(".") in ("square", "sq", "cubic", "cu"):
            power = 2 if word[0] in "sS" else 3
        else:
            unit = _lookup(word)
            if unit is None:
                return None
            last, found = unit ** (sign * power), True
            total, power, sign = (
                total * last if total.dimension else last,
                1,
                sign if in_bracket else 1,
            )
    return total if found and power == 1 else None
