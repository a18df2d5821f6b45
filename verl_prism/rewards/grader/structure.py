r"""The parts of an answer: of lists, sets, points and intervals, and the two sides of an equation."""

import re
from dataclasses import dataclass, field
from itertools import pairwise

from verl_prism.rewards.grader.normalization import enclosed, split_outside_brackets
from verl_prism.rewards.grader.numeric import constant
from verl_prism.rewards.grader.quantities import join_digits

_UNION = re.compile(r"\s*\u222a\s*|(?<=[)\]])\s*U\s*(?=[(\[])")
_COMMA = re.compile(r"\s*[,;]\s*(?:(?:and|or)\b\s*)?")
_LIST = re.compile(r"\s*[,;]\s*(?:(?:and|or)\b\s*)?|\s+(?:and|or|&)\s+", re.IGNORECASE)
_OR = re.compile(r"\bor\b", re.IGNORECASE)
_MEMBER = re.compile(r"^[^\W\d_](?:_\{?\w\}?)?\s*∈\s*")
_POINT_NAME = re.compile(
    r"^(?:the\s+)?(?:(?:point|coordinate|interval|set|vector|pair)s?\s*:?\s*)?(?:[A-Z]'?\s*)?(?=[(\[{⦃⟨])",
    re.IGNORECASE,
)
_MARKERS = re.compile(r"(?:^|(?<=\s)|(?<=[,;]))(?:\(([1-9a-z])\)|([1-9])[.)](?=\s))\s*")
_BOUND = re.compile(r"\s*(<=?|>=?|≤|≥)\s*")
_EQUALS = re.compile(r"\s*(?:(?<![<>!=])==?(?!=)|≈|:=)\s*")
_VARIABLE = re.compile(r"([^\W\d_])(?:_\{?\w{1,2}\}?)?'?")
_LABEL = re.compile(
    r"(?:the\s+)?(?:m?\s*[∠△]\s*)?(?:[A-Z]{2,4}'?|[^\W\d_]{3,}(?:['-]?[^\W\d_]+)*(?:\s+[^\W\d_]+){0,7}"
    r"|m?\s*∠\s*[A-Z0-9]{1,4}|[A-Za-z]+(?:_\{?\w+\}?|\s[a-z]+)|[A-Za-z]{1,3}\s?\([^()=]{1,12}\)|\([a-z](?:\s*,\s*[a-z])+\))"
)
_EMPTY_SETS = {
    "∅",
    "⦃⦄",
    "{}",
    "empty set",
    "the empty set",
    "no solution",
    "no solutions",
    "no real solution",
    "no real solutions",
    "there is no solution",
    "there are no solutions",
    "none exist",
}
_ALL_NUMBERS = {
    "allrealnumbers",
    "allreals",
    "allrealx",
    "anyrealnumber",
    "x∈r",
    "x∈allrealnumbers",
}
_FUNCTIONS = {"sin", "cos", "tan", "log", "exp", "sqrt", "max", "min"}


@dataclass(frozen=True)
class Parts:
    """`kind` is "list", "set", "steps" ((1) … (2) …) or a pair of brackets; `alternatives`: joined by "or"."""

    kind: str
    items: tuple[str, ...]
    alternatives: bool = field(default=False, compare=False)

    @property
    def ordered(self) -> bool:
        return self.kind not in ("list", "set")


def parts(text: str) -> Parts | None:
    """The parts of `text`; None where it is one thing."""
    if text.casefold() in _EMPTY_SETS:
        return Parts("set", ())
    if "".join(text.split()).casefold() in _ALL_NUMBERS:
        return Parts("()", ("-∞", "∞"))
    if interval := _interval(text):
        return interval
    sides = equation(text) if text.count("=") == 1 else None
    if sides and enclosed(sides[1]) and (variable(sides[0]) or is_label(sides[0])):
        text = sides[1]
    text = _MEMBER.sub("", text)
    named = _POINT_NAME.sub("", text)
    if enclosed(named) and (group := _bracketed(named)):
        return group
    pieces = split_outside_brackets(text, _UNION)
    if len(pieces) > 1 and all(map(enclosed, pieces)):
        return Parts("list", tuple(pieces))
    pieces = split_outside_brackets(join_digits(text), _LIST)
    if len(pieces) > 1 and all(pieces):
        return Parts("list", tuple(pieces), alternatives=bool(_OR.search(text)))
    return _both_signs(text)


def loose_parts(text: str) -> Parts | None:
    """`2,100` and `2 100` as two numbers, which they may be where two are asked for."""
    pieces = re.split(r"\s*,\s*|\s+", text)
    plain = len(pieces) > 1 and all(re.fullmatch(r"-?(?:0|[1-9][0-9]*)", piece) for piece in pieces)
    return Parts("list", tuple(pieces)) if plain else None


def equation(text: str) -> tuple[str, str] | None:
    """The first and the last side of an equation or a chain of them, a variable on the left."""
    if "=" not in text and "≈" not in text:
        return None
    sides = split_outside_brackets(text, _EQUALS)
    if len(sides) < 2 or not sides[0] or not sides[-1]:
        return None
    left, right = sides[0], sides[-1]
    return (
        (right, left)
        if variable(right) and not variable(left) and not is_label(left)
        else (left, right)
    )


def variable(text: str) -> str | None:
    """The letter of a variable, its subscript aside: the roots of x are x_1 and x_2."""
    match = _VARIABLE.fullmatch(text)
    return match[1] if match else None


def is_label(text: str) -> bool:
    """Whether the left side of an equation only names what the right side is: `AB`, `m∠ABC`, `Area`, `f(2)`."""
    return bool(_LABEL.fullmatch(text)) and text.split("(")[0].strip() not in _FUNCTIONS


def inequality(text: str) -> tuple[str, str, str] | None:
    """Left side, sign (< ≤ ≠) and right side, turned so that the left is the smaller."""
    sides = re.split(r"\s*(<=?|>=?|≤|≥|≠|!=)\s*", text)
    if len(sides) != 3 or not sides[0] or not sides[2]:
        return None
    left, sign, right = sides
    sign = {"<=": "≤", ">=": "≥", "!=": "≠"}.get(sign, sign)
    return (right, {">": "<", "≥": "≤"}[sign], left) if sign in ">≥" else (left, sign, right)


def steps(text: str) -> Parts | None:
    """`(1) 3 (2) 4`: marked by consecutive digits or letters from the first."""
    marks = list(_MARKERS.finditer(text)) if text[:1] in "(1" else []
    names = [mark[1] or mark[2] for mark in marks]
    if (
        len(marks) < 2
        or marks[0].start()
        or names[0] not in "1a"
        or any(ord(b) - ord(a) != 1 for a, b in pairwise(names))
    ):
        return None
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    return Parts(
        "steps",
        tuple(text[mark.end() : end].strip(" ,;") for mark, end in zip(marks, ends, strict=True)),
    )


def _bracketed(text: str) -> Parts | None:
    inner, kind = text[1:-1].strip(), text[0] + text[-1]
    if kind in ("{}", "⦃⦄"):
        kind = "set"
        if not inner:
            return Parts("set", ())
        if text[0] == "{" and "," not in inner:
            return None
    elif "," not in inner and ";" not in inner:
        return None
    if re.search(r",\s", inner):
        inner = join_digits(inner)
    items = tuple(split_outside_brackets(inner, _COMMA))
    if not all(items) or (len(items) < 2 and kind != "set"):
        return None
    return Parts("()" if kind == "⟨⟩" else kind, items)


def _interval(text: str) -> Parts | None:
    """An inequality of one variable with constant bounds as the interval that it describes."""
    pieces = _BOUND.split(text)
    if len(pieces) not in (3, 5):
        return None
    signs = {"≤": "<=", "≥": ">="}
    left, sign = pieces[0], signs.get(pieces[1], pieces[1])
    if len(pieces) == 5:
        middle, second, right = pieces[2], signs.get(pieces[3], pieces[3]), pieces[4]
        if (
            sign[0] != second[0]
            or not variable(middle)
            or constant(left) is None
            or constant(right) is None
        ):
            return None
        if sign[0] == ">":
            left, sign, second, right = right, second, sign, left
        return Parts(("[" if "=" in sign else "(") + ("]" if "=" in second else ")"), (left, right))
    right = pieces[2]
    if variable(right) and constant(left) is not None:
        left, right, sign = right, left, {"<": ">", ">": "<"}[sign[0]] + sign[1:]
    if not variable(left) or constant(right) is None:
        return None
    closed = "=" in sign
    if sign[0] == "<":
        return Parts("(]" if closed else "()", ("-∞", right))
    return Parts("[)" if closed else "()", (right, "∞"))


def _both_signs(text: str) -> Parts | None:
    """`2 ± √3` as its two values."""
    if text.count("±") + text.count("∓") != 1 and not (
        "±" in text and "∓" in text and len(text) < 100
    ):
        return None
    plus = text.replace("±", "+").replace("∓", "-")
    return Parts("list", (plus, text.replace("±", "-").replace("∓", "+")))
