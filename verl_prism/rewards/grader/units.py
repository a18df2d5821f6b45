"""Units of measurement: their size in base units and their dimension.

The table is our own because answers need a few hundred spellings, such as `cents` and `square
feet`, read in microseconds. A units library parses Python-like expressions, loads a registry, and
offers neither.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

Dimension = tuple[tuple[str, int], ...]  # base units and their exponents, sorted; no zeros


@dataclass(frozen=True)
class Unit:
    """`x` of a unit are `x * factor + offset` base units: 1 km is 1000 m, 0 °C is 273.15 K."""

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
        offset = self.offset if exponent == 1 else 0.0
        return Unit(self.factor**exponent, _dimension(exponents), offset)


def _dimension(exponents: dict[str, int]) -> Dimension:
    return tuple(sorted((base, exponent) for base, exponent in exponents.items() if exponent))


# Columns: factor, dimension, spellings.
_TABLE = f"""
1          m          m meter meters metre metres
0.0254     m          in inch inches "
0.3048     m          ft foot feet
0.9144     m          yd yard yards
1609.344   m          mi mile miles
1852       m          nmi
1e-10      m          Å angstrom angstroms
9.4607304725808e15 m  ly light-year light-years lightyear lightyears
1e-3       kg         g gram grams gramme grammes gm gms
1e-9       kg         mcg mcgs
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
1e-6       m3         cc ccs
3.785411784e-3 m3     gal gallon gallons
9.46352946e-4 m3      qt quart quarts
4.73176473e-4 m3      pint pints
2.365882365e-4 m3     cup cups
1          kg,m,s-2   N newton newtons
1          kg,m2,s-2  J joule joules Nm
4.184      kg,m2,s-2  cal calorie calories
1.602176634e-19 kg,m2,s-2 eV electronvolt electronvolts
3600       kg,m2,s-2  Wh
1          kg,m2,s-3  W watt watts
745.69987158227 kg,m2,s-3 hp horsepower
1          kg,m-1,s-2 Pa pascal pascals
1e5        kg,m-1,s-2 bar bars
101325     kg,m-1,s-2 atm atmosphere atmospheres
133.322387415 kg,m-1,s-2 mmHg
{101325 / 760} kg,m-1,s-2 torr Torr
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
# Spellings that take a prefix: symbols (`km`) and words (`kilometers`).
_SYMBOLS = "m g s A K L l N J cal W V Ω Hz Pa C F H T Wb M bit b B bar eV Wh mol rad"
_WORDS = (
    "meter metre gram gramme second liter litre newton joule calorie watt volt ohm hertz pascal"
    " coulomb farad henry tesla amp ampere bit byte mole electronvolt"
)
_PREFIXED = set(_SYMBOLS.split())
_PREFIXED_WORDS = set(_WORDS.split())
_BASE_UNIT = re.compile(r"(?P<name>[^\d-]+)(?P<exponent>-?\d*)")
# Symbols that may be written in lower case or capitals, although they are short.
_ANY_CASE_SYMBOLS = {"kg", "cm", "km", "ml", "lb", "ft", "oz", "hz", "hr", "kj"}

_PART = re.compile(
    r"""
    \s*(?:
        (?P<word>°\s*[CFcf]\b|US\$|[^\W\d_]+(?:-years?)?\.?|[°$€£¥₹₩¢])
        |\^\s*\{?\s*(?P<exponent>-?[1-4])\s*\}?(?![0-9])
        |(?P<sign>[*/()])
    )
    |(?<=[^\W\d_])(?P<glued>-?[1-4])(?![0-9])     # the exponent in `m2`
    """,
    re.VERBOSE,
)
_US_DOLLAR = re.compile(r"^U\.?S\.?\s+(?=dollar)")
_DEGREES_OF = re.compile(r"\bdeg(?:ree)?s?\s+(celsius|centigrade|fahrenheit|[CF])\b", re.IGNORECASE)
_DEGREES_CELSIUS = re.compile(r"°(celsius|centigrade)", re.IGNORECASE)
_MERCURY = re.compile(r"\bmm\s+(?:of\s+)?Hg\b")
_PER_SECOND = re.compile(r"([kc]?m)s\s*(\^?\s*\{?\s*-[12]\s*\}?)")
_DIVIDED = re.compile(r"([^/()]+)/((?:(?!\bper\b)[^/()*])+)")
_POWERS_BEFORE = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWERS_AFTER = {"squared": 2, "cubed": 3}


@lru_cache(maxsize=1024)
def units(text: str) -> tuple[Unit, ...]:
    """Return the unit that `text` names: `m/s^2`, `square meters`, `$`.

    Two units if the text is ambiguous, () if it names none.
    """
    text = _US_DOLLAR.sub("", text.strip())
    text = _MERCURY.sub("mmHg", text)
    known = _lookup(text) or _compound(text)
    if known is None:
        return ()
    second = _second_meaning(text)
    return (known, second) if second else (known,)


def _second_meaning(text: str) -> Unit | None:
    """Return the second unit that `C`, `ms^-1` or `J/kg °C` can mean; None for other texts."""
    if text in _SECOND_MEANINGS:
        return _SECOND_MEANINGS[text]
    if per_second := _PER_SECOND.fullmatch(text):
        return _compound(f"{per_second[1]} s{per_second[2]}")
    if divided := _DIVIDED.fullmatch(text):
        return _compound(f"{divided[1]}/({divided[2]})")
    return None


def _lookup(word: str) -> Unit | None:
    if word[:1] == "°":
        word = "".join(word.split())
    bare = word.removesuffix(".")
    return _UNITS.get(word) or _UNITS.get(bare) or _ANY_CASE.get(bare.casefold())


def _compound(text: str) -> Unit | None:
    """Read a product of units from left to right: `kg m/s^2`, `miles per hour`, `square feet`."""
    text = _DEGREES_OF.sub(r"°\1", text)
    text = _DEGREES_CELSIUS.sub("°C", text).replace("°fahrenheit", "°F")
    product = _Product()
    position = 0
    while position < len(text):
        part = _PART.match(text, position)
        if not part:
            return None
        position = part.end()
        exponent = part["exponent"] or part["glued"]
        if part["sign"]:
            product.take_sign(part["sign"])
        elif exponent:
            product.raise_last(int(exponent))
        elif not product.take_word(part["word"]):
            return None
    return product.unit()


class _Product:
    """A product of units while it is read from left to right.

    `/` and `per` divide by the next unit or by all units in the next bracket.
    """

    def __init__(self) -> None:
        self._total = _ONE
        self._last = _ONE  # the factor that a following exponent raises
        self._sign = 1  # exponent of the next unit: -1 after `/`
        self._in_bracket = False
        self._power = 1  # exponent of the next unit: 2 after `square`
        self._found = False

    def unit(self) -> Unit | None:
        """Return the product, None if it has no unit or ends with `square`."""
        return self._total if self._found and self._power == 1 else None

    def take_sign(self, sign: str) -> None:
        if sign == "(":
            self._in_bracket = True
        elif sign == ")":
            self._in_bracket = False
        if sign == "/":
            self._sign = -1
        elif not self._in_bracket:
            self._sign = 1

    def raise_last(self, exponent: int) -> None:
        """Raise the last factor to a power."""
        self._total = self._total * self._last ** (-1) * self._last**exponent
        self._last = _ONE

    def take_word(self, word: str) -> bool:
        """Take a unit or a word such as `per`; return False if the word is neither."""
        folded = word.casefold()
        bare = folded.removesuffix(".")
        if folded in _POWERS_AFTER:
            self.raise_last(_POWERS_AFTER[folded])
        elif folded == "per" or word in ("a", "an"):  # `A` is an ampere
            if folded == "per" or self._found:  # `dollars a day`
                self._sign = -1
        elif bare in _POWERS_BEFORE:
            self._power = _POWERS_BEFORE[bare]
        else:
            unit = _lookup(word)
            if unit is None:
                return False
            self._multiply(unit)
        return True

    def _multiply(self, unit: Unit) -> None:
        self._found = True
        self._last = unit ** (self._sign * self._power)
        if self._total.dimension:
            self._total = self._total * self._last
        else:
            self._total = self._last
        self._power = 1
        if not self._in_bracket:
            self._sign = 1


def _table_entries() -> Iterator[tuple[str, Unit]]:
    """Yield the spellings in the table and their units."""
    for line in _TABLE.strip().splitlines():
        factor, dimension, *spellings = line.split()
        exponents = {}
        for base in dimension.split(","):
            match = _BASE_UNIT.fullmatch(base)
            assert match, f"the table of units has a malformed dimension: {base}"
            exponents[match["name"]] = int(match["exponent"] or 1)
        unit = Unit(float(factor), _dimension(exponents))
        for spelling in spellings:
            yield spelling, unit


def _prefixed_entries() -> Iterator[tuple[str, Unit]]:
    """Yield the spellings with a prefix and their units."""
    for spelling, unit in _table_entries():
        prefixes: dict[str, float] = {}
        if spelling in _PREFIXED:
            prefixes = _PREFIXES
        elif spelling.removesuffix("s") in _PREFIXED_WORDS:
            prefixes = _PREFIX_WORDS
        for prefix, size in prefixes.items():
            yield prefix + spelling, Unit(size * unit.factor, unit.dimension)


def _units_in_any_case() -> dict[str, Unit]:
    """Return the case-folded spellings that are long or common, and have one meaning."""
    meanings: dict[str, set[Unit]] = {}
    for spelling, unit in _UNITS.items():
        meanings.setdefault(spelling.casefold(), set()).add(unit)
    return {
        name: next(iter(units))
        for name, units in meanings.items()
        if len(units) == 1 and (len(name) > 2 or name in _ANY_CASE_SYMBOLS)
    }


_ONE = Unit(1.0, ())
_KELVIN = (("K", 1),)
_CELSIUS = Unit(1.0, _KELVIN, 273.15)
_FAHRENHEIT = Unit(5 / 9, _KELVIN, 459.67 * 5 / 9)
_UNITS: dict[str, Unit] = {
    **dict(_prefixed_entries()),
    **dict(_table_entries()),  # `min` is a minute, not a milli-inch
    **dict.fromkeys(("°C", "°c", "celsius", "centigrade", "degC"), _CELSIUS),
    **dict.fromkeys(("°F", "°f", "fahrenheit", "degF"), _FAHRENHEIT),
}
_ANY_CASE = _units_in_any_case()
# Ambiguous spellings: `C` is a charge or a temperature, `pounds` are a mass or a currency.
_SECOND_MEANINGS = {"C": _CELSIUS, "F": _FAHRENHEIT, "pound": _UNITS["£"], "pounds": _UNITS["£"]}
DEGREES = _UNITS["°"]
