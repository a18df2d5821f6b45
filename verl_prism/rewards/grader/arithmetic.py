r"""Evaluation of formulas at a point, with numbers in place of their variables.

Nothing here is symbolic. Fractions stay exact. The work is bounded: numbers of more than a few
thousand digits and deeply nested formulas are unreadable.
"""

import cmath
import math
import re
import zlib
from collections.abc import Callable
from fractions import Fraction
from typing import Any

Value = Any  # Fraction, float or complex; mypy has no type for a mixture of numbers
Token = tuple[str, str]  # a group of _TOKEN (or "end") and its text

MAX_BITS = 8192  # of the numerator and the denominator of an exact number
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
    "inf": math.inf,
    "infty": math.inf,
}
_FUNCTION_NAMES = ("sqrt", *_FUNCTIONS)
_KNOWN_NAMES = {*_FUNCTION_NAMES, *_CONSTANTS}
_CLOSING = {"(": ")", "{": "}", "[": "]", "|": "|"}
# What may follow a factor without a sign, in an implied product.
_FACTOR_KINDS = ("number", "mixed", "stacked", "frac")
_FACTOR_SIGNS = ("(", "{", "[", "√", "∞", "π")
_LETTERS_OF_A_PRODUCT = 3  # a longer run of letters is a word


class Unreadable(ValueError):
    """Not a formula in plain arithmetic, or one whose value is too large."""


def evaluate(text: str, point: int) -> tuple[Value | None, frozenset[str] | None]:
    """Return the value of a formula at a point, and the names of its variables.

    point: a number that determines the value of each variable.

    The value is None if the formula has none at this point. Both are None if the text is not a
    readable formula.
    """
    try:
        formula = _Formula(text, point)
    except Unreadable:
        return None, None
    try:
        return formula.value(), frozenset(formula.names)
    except Unreadable:
        return None, None
    except (ArithmeticError, ValueError, TypeError):
        return None, frozenset(formula.names)


def _coordinate(name: str, point: int) -> float:
    """Return a variable's value at a point.

    It is at most 3 in size, and positive at the first three points.
    """
    seed = zlib.crc32(f"{point} {name}".encode())
    size = 0.1 + 2.9 * (seed >> 1) / 2**31
    negative = point >= 3 and seed & 1
    return -size if negative else size


class _Formula:
    """Reads a formula from left to right and evaluates it on the way.

    This is recursive descent with one method per level of precedence.
    """

    def __init__(self, text: str, point: int) -> None:
        self.tokens = _tokens(text)
        self.position = 0
        self.depth = 0
        self.point = point
        self.names: set[str] = set()
        self.imaginary = ("name", "i") in self.tokens

    def value(self) -> Value:
        result = self._sum()
        if self.position < len(self.tokens):
            raise Unreadable
        return result

    def _next(self) -> Token:
        if self.position < len(self.tokens):
            return self.tokens[self.position]
        return ("end", "")

    def _take(self, *signs: str) -> str:
        """Consume and return the next token if it is one of these signs, else return ""."""
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

    def _product(self, unbracketed_argument: bool = False) -> Value:
        """Read factors with or without signs between them.

        unbracketed_argument: whether it is the argument in `sin 2x`, which ends at a sign and at
            the next function.
        """
        result = self._signed()
        while True:
            sign = "" if unbracketed_argument else self._take("*", "/")
            if sign:
                right = self._signed()
                result = _bounded(result * right if sign == "*" else result / right)
            elif self._at_factor(unbracketed_argument):
                result = _bounded(result * self._power())
            else:
                return result

    def _at_factor(self, unbracketed_argument: bool) -> bool:
        kind, token = self._next()
        if kind == "number" and self.tokens[self.position - 1][0] in ("number", "mixed"):
            raise Unreadable  # `3 4` is not a product
        if kind == "name":
            return not (unbracketed_argument and token in _FUNCTIONS)
        return kind in _FACTOR_KINDS or token in _FACTOR_SIGNS

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
            elif sign == "%":
                result = result / 100
            else:
                result = float(result) * math.pi / 180
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
        if token in _CLOSING:
            result = self._bracketed(_CLOSING[token])
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
        r"""Read the argument of \frac or √: a group, a number or a letter.

        After \frac a number is one digit: `\frac12` is a half.
        """
        kind, token = self._next()
        splittable = kind == "number" and token.isdigit() and len(token) > 1
        if splittable and self.tokens[self.position - 1][1] != "√":
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
        self.names.add(name)
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
        has_bracket = self._next()[1] in ("(", "{")
        argument = self._atom() if has_bracket else self._product(unbracketed_argument=True)
        if power == -1 and "arc" + name in _FUNCTIONS:
            name = "arc" + name
            power = None
        result = self._real(_FUNCTIONS[name](argument))
        if base != 10:
            result = result / math.log10(base)
        return result if power is None else self._raise(result, power)

    def _real(self, result: Value) -> Value:
        """Return a complex result as a real number, unless the formula contains i."""
        if self.imaginary or not isinstance(result, complex):
            return result
        if abs(result.imag) > 1e-12 * abs(result):
            raise ValueError("no real value")
        return result.real

    def _root(self, base: Value, degree: Value) -> Value:
        return self._raise(base, 1 / degree)

    def _raise(self, base: Value, exponent: Value) -> Value:
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            exact = _exact_power(base, exponent)
            if exact is not None:
                return exact
        real = not self.imaginary and isinstance(base, Fraction | float)
        if real and base < 0 and isinstance(exponent, Fraction):
            return _real_power_of_negative(base, exponent)
        if isinstance(base, complex) or isinstance(exponent, complex):
            return base**exponent
        return self._real(float(base) ** float(exponent))


def _tokens(text: str) -> list[Token]:
    tokens: list[Token] = []
    text = text.rstrip()
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if not match:
            raise Unreadable
        if match.lastgroup in ("mixed", "stacked") and tokens and tokens[-1][1] in ("^", "**", "_"):
            match = _DIGITS.match(text, position) or match  # x^2\frac{1}{2} is not a power of 2.5
        kind = str(match.lastgroup)
        token = match[kind]
        position = match.end()
        if kind == "name" and token not in _KNOWN_NAMES:
            tokens += [("name", name) for name in _names(token)]
        else:
            tokens.append((kind, token))
    return tokens


def _names(letters: str) -> list[str]:
    """Split a run of letters into the factors of a product: `xy` is x y, `sinx` is sin x."""
    if len(letters) > 2:
        for function in _FUNCTION_NAMES:
            if letters.startswith(function) and len(letters) <= len(function) + 1:
                return [function, letters[len(function) :]]
    if len(letters) > _LETTERS_OF_A_PRODUCT:
        raise Unreadable
    return list(letters)


def _mixed_number(token: str) -> Fraction:
    r"""Return `2 1/2` or `2\frac{1}{2}`: a sum, or a product if the fraction is improper."""
    whole, *digits = re.findall(r"[0-9]+", token)
    if len(digits) == 2:
        numerator, denominator = digits
    else:  # `2\frac12`
        numerator = digits[0][0]
        denominator = digits[0][1:]
    part = Fraction(int(numerator), int(denominator))
    return int(whole) + part if part < 1 else int(whole) * part


def _factorial(value: Value) -> Value:
    if isinstance(value, Fraction) and value.denominator == 1:
        if not 0 <= value <= 200:
            raise Unreadable
        return Fraction(math.factorial(int(value)))
    return math.gamma(float(value) + 1)


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction) and _bits(value) > MAX_BITS:
        raise Unreadable
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    """Return a power that is rational: one with an integer exponent, or the root of a square."""
    if exponent.denominator == 1:
        return _integer_power(base, exponent.numerator)
    if exponent == Fraction(1, 2) and base >= 0:
        return _exact_root(base)
    return None


def _integer_power(base: Fraction, exponent: int) -> Fraction:
    too_large = _bits(base) * abs(exponent) > MAX_BITS
    if too_large and abs(base) != 1 and base != 0:
        raise Unreadable
    return base**exponent


def _exact_root(base: Fraction) -> Fraction | None:
    numerator = math.isqrt(base.numerator)
    denominator = math.isqrt(base.denominator)
    root = Fraction(numerator, denominator)
    return root if root * root == base else None


def _real_power_of_negative(base: Value, exponent: Fraction) -> float:
    """Return the real value of a negative number's power: (-8)^(1/3) is -2."""
    if exponent.denominator % 2 == 0:
        raise ValueError("no real value")
    return (-1) ** exponent.numerator * abs(float(base)) ** float(exponent)
