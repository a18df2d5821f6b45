r"""Reads a formula and computes it at a point, its variables standing for numbers. Nothing here is symbolic.

Fractions stay exact. Work is bounded: numbers of more than some thousand digits and deep nests are unreadable.
"""

import cmath
import math
import re
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

Value = Any  # Fraction, float or complex; mypy knows no type of numbers that mix

MAX_BITS = 8192  # of an exact number's numerator and denominator
MAX_DEPTH = 40

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<mixed>[0-9]+\s+(?:and\s+)?[0-9]+\s*/\s*[0-9]+(?![0-9.]))
    |(?P<stacked>[0-9]+\s*\\frac\s*(?:\{\s*[0-9]+\s*\}|[0-9])\s*(?:\{\s*[0-9]+\s*\}|[0-9]))
    |(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4}(?![0-9.]))?)
    |(?P<frac>\\frac(?![a-z]))
    |(?P<name>[^\W\d_]+)
    |(?P<sign>\*\*|[-+*/^!%°(){}\[\]|_√∞π])
    )""",
    re.VERBOSE,
)
_DIGITS = re.compile(r"\s*(?P<number>[0-9]+)")
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "asin": cmath.asin,
    "acos": cmath.acos,
    "atan": cmath.atan,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "ln": cmath.log,
    "log": cmath.log10,
    "lg": cmath.log10,
    "exp": cmath.exp,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "abs": abs,
}
_CONSTANTS = {
    "π": math.pi,
    "pi": math.pi,
    "e": math.e,
    "i": 1j,
    "∞": math.inf,
    "infinity": math.inf,
}
_CONSTANTS |= {"inf": math.inf, "infty": math.inf}
_FACTORS, _OPENING = (
    ("number", "mixed", "stacked", "frac"),
    ("(", "{", "[", "√", "∞", "π"),
)  # of implied products
_LETTERS_OF_A_PRODUCT = 3  # longer runs of letters are words


class Unreadable(ValueError):
    """Not a formula in plain arithmetic, or one without a value of reasonable size."""


def evaluate(text: str, point: int) -> tuple[Value | None, frozenset[str] | None]:
    """A formula's value at one of the points, None where it has none there, and its variables, None if unreadable."""
    try:
        formula = _Formula(text, point)
    except Unreadable:
        return None, None
    try:
        return formula.value(), frozenset(formula.seen)
    except Unreadable:
        return None, None
    except (ArithmeticError, ValueError, TypeError):
        return None, frozenset(formula.seen)


def _coordinate(name: str, point: int) -> float:
    """The value of a variable at a point: anything up to 3 in size, above 0 at the first three points."""
    seed = zlib.crc32(f"{point} {name}".encode())
    size = 0.1 + 2.9 * (seed >> 1) / 2**31
    return -size if point >= 3 and seed & 1 else size


class _Formula:
    """Reads a formula from left to right and computes as it goes (recursive descent, one method per precedence)."""

    def __init__(self, text: str, point: int) -> None:
        self.tokens = _tokens(text)
        self.position = self.depth = 0
        self.point = point
        self.seen: set[str] = set()
        self.imaginary = any(kind == "name" and token == "i" for kind, token in self.tokens)

    def value(self) -> Value:
        result = self._sum()
        if self.position < len(self.tokens):
            raise Unreadable
        return result

    def _next(self) -> tuple[str, str]:
        return self.tokens[self.position] if self.position < len(self.tokens) else ("end", "")

    def _take(self, *signs: str) -> str:
        """The next token if it is one of these signs, and "" otherwise."""
        kind, token = self._next()
        if kind == "sign" and token in signs:
            self.position += 1
            return token
        return ""

    def _sum(self) -> Value:
        result = self._product()
        while sign := self._take("+", "-"):
            right = self._product()
            result = _bounded(result + right if sign == "+" else result - right)
        return result

    def _product(self, application: bool = False) -> Value:
        """application: the argument of a function without brackets ends at a sign and at the next function."""
        result = self._signed()
        while True:
            kind, token = self._next()
            if not application and (sign := self._take("*", "/")):
                right = self._signed()
                result = _bounded(result * right if sign == "*" else result / right)
            elif kind == "number" and self.tokens[self.position - 1][0] in ("number", "mixed"):
                raise Unreadable  # `3 4` is no product
            elif (
                kind in _FACTORS
                or token in _OPENING
                or (kind == "name" and not (application and token in _FUNCTIONS))
            ):
                result = _bounded(result * self._power())
            else:
                return result

    def _signed(self) -> Value:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        result = self._power()
        return -result if negative else result

    def _power(self) -> Value:
        base = self._postfix()
        if not self._take("^", "**"):
            return base
        self._enter()
        exponent = self._signed()
        self.depth -= 1
        return self._raise(base, exponent)

    def _postfix(self) -> Value:
        result = self._atom()
        while sign := self._take("!", "%", "°"):
            if sign == "!":
                result = _factorial(result)
            else:
                result = result / 100 if sign == "%" else float(result) * math.pi / 180
        return result

    def _atom(self) -> Value:
        self._enter()
        result = self._read_atom()
        self.depth -= 1
        return result

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable

    def _read_atom(self) -> Value:
        kind, token = self._next()
        self.position += 1
        if kind == "number":
            return _bounded(Fraction(token))
        if kind in ("mixed", "stacked"):
            return _mixed_number(token)
        if kind == "frac":
            return self._argument() / self._argument()
        if kind == "name":
            return self._name(token)
        if token == "√":
            degree = self._bracketed("]") if self._take("[") else Fraction(2)
            return self._root(self._argument(), degree)
        if token in ("(", "{", "[", "|"):
            result = self._bracketed({"(": ")", "{": "}", "[": "]", "|": "|"}[token])
            return abs(result) if token == "|" else result
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        raise Unreadable

    def _bracketed(self, closing: str) -> Value:
        result = self._sum()
        if not self._take(closing):
            raise Unreadable
        return result

    def _argument(self) -> Value:
        """Of \frac and √: a group, or one number, one letter, one digit (`\frac12` is a half)."""
        kind, token = self._next()
        if (
            kind == "number"
            and token.isdigit()
            and len(token) > 1
            and self.tokens[self.position - 1][1] != "√"
        ):
            self.tokens[self.position] = ("number", token[1:])
            return Fraction(token[0])
        return self._atom()

    def _name(self, name: str) -> Value:
        if name in _FUNCTIONS:
            return self._apply(name)
        if name == "sqrt":
            return self._root(self._atom(), Fraction(2))
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        return self._variable(name)

    def _variable(self, name: str) -> Value:
        if self._take("_"):
            name += "_" + self._subscript()
        self.seen.add(name)
        return _coordinate(name, self.point)

    def _subscript(self) -> str:
        closing = "}" if self._take("{") else ""
        kind, token = self._next()
        if kind not in ("number", "name"):
            raise Unreadable
        self.position += 1
        if closing and not self._take(closing):
            raise Unreadable
        return token

    def _apply(self, name: str) -> Value:
        base = Fraction(10)
        if name == "log" and self._take("_"):
            base = self._argument()
        power = self._argument() if self._take("^") else None
        bracket = self._next()[1] in ("(", "{")
        argument = self._atom() if bracket else self._product(application=True)
        if power == -1 and "arc" + name in _FUNCTIONS:
            name, power = "arc" + name, None
        result = self._real(_FUNCTIONS[name](argument))
        if base != 10:
            result = result / math.log10(base)
        return result if power is None else self._raise(result, power)

    def _real(self, result: Value) -> Value:
        if self.imaginary or not isinstance(result, complex):
            return result
        if abs(result.imag) > 1e-12 * abs(result):
            raise ValueError("no real value")
        return result.real

    def _root(self, base: Value, degree: Value) -> Value:
        return self._raise(base, 1 / degree)

    def _raise(self, base: Value, exponent: Value) -> Value:
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            if exponent.denominator == 1:
                return _exact_power(base, exponent.numerator)
            if exponent == Fraction(1, 2) and base >= 0 and (root := _exact_root(base)) is not None:
                return root
        if (
            isinstance(base, Fraction | float)
            and base < 0
            and isinstance(exponent, Fraction)
            and not self.imaginary
        ):
            if exponent.denominator % 2 == 0:
                raise ValueError("no real value")
            return (-1) ** exponent.numerator * abs(float(base)) ** float(exponent)
        if not isinstance(base, complex) and not isinstance(exponent, complex):
            return self._real(float(base) ** float(exponent))
        return base**exponent


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    position, text = 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match or match.lastgroup is None:
            raise Unreadable
        if match.lastgroup in ("mixed", "stacked") and tokens and tokens[-1][1] in ("^", "**", "_"):
            match = _DIGITS.match(text, position) or match  # x^2\frac{1}{2} is no power of 2.5
        kind, token, position = str(match.lastgroup), match[str(match.lastgroup)], match.end()
        if (
            kind == "name"
            and token not in _FUNCTIONS
            and token not in _CONSTANTS
            and token != "sqrt"
        ):
            tokens += [("name", name) for name in _names(token)]
        else:
            tokens.append((kind, token))
    return tokens


def _names(letters: str) -> list[str]:
    """A run of letters as a product: `xy` is x y, `sinx` is sin x."""
    for function in ("sqrt", *_FUNCTIONS) if len(letters) > 2 else ():
        if letters.startswith(function) and len(letters) <= len(function) + 1:
            return [function, letters[len(function) :]]
    if len(letters) > _LETTERS_OF_A_PRODUCT:
        raise Unreadable
    return list(letters)


def _mixed_number(token: str) -> Fraction:
    """`2 1/2` and `2\frac{1}{2}`: a sum, but a product where the fraction is improper."""
    whole, top, bottom = map(int, _two_or_more_numbers(token))
    part = Fraction(top, bottom)
    return whole + part if part < 1 else whole * part


def _two_or_more_numbers(token: str) -> list[str]:
    whole, rest = re.match(r"([0-9]+)(.*)", token, re.DOTALL).groups()  # type: ignore[union-attr]
    numbers = re.findall(r"[0-9]+", rest)
    return [whole, *(numbers if len(numbers) == 2 else (numbers[0][0], numbers[0][1:]))]


def _factorial(value: Value) -> Value:
    if isinstance(value, Fraction) and value.denominator == 1:
        if not 0 <= value <= 200:
            raise Unreadable
        return Fraction(math.factorial(int(value)))
    return math.gamma(float(value) + 1)


def _bounded(value: Value) -> Value:
    if (
        isinstance(value, Fraction)
        and max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS
    ):
        raise Unreadable
    return value


def _exact_power(base: Fraction, exponent: int) -> Fraction:
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size * abs(exponent) > MAX_BITS and abs(base) != 1 and base != 0:
        raise Unreadable
    return base**exponent


def _exact_root(base: Fraction) -> Fraction | None:
    top, bottom = math.isqrt(base.numerator), math.isqrt(base.denominator)
    return (
        Fraction(top, bottom)
        if top * top == base.numerator and bottom * bottom == base.denominator
        else None
    )
