r"""The parts of lists, sets, points and intervals, and the two sides of an equation."""

import re
from dataclasses import dataclass, field
from itertools import pairwise

from verl_prism.rewards.grader.normalization import enclosed, split_outside_brackets
from verl_prism.rewards.grader.numeric import constant
from verl_prism.rewards.grader.quantities import join_digits

_UNION = re.compile(r"\s*\u222a\s*|(?<=[)\]])\s*U\s*(?=[(\[])")
_COMMA = re.compile(r"\s*[,;]\s*(?:(?:and|or)\b\s*)?")
_LIST = re.compile(rf"{_COMMA.pattern}|\s+(?:and|or|&)\s+", re.IGNORECASE)
_OR = re.compile(r"\bor\b", re.IGNORECASE)
_MEMBER = re.compile(r"^[^\W\d_](?:_\{?\w\}?)?\s*∈\s*")
_POINT_NAME = re.compile(  # `the point P` before `(1, 2)`
    r"""
    ^(?:the\s+)?
    (?:(?:point|coordinate|interval|set|vector|pair)s?\s*:?\s*)?
    (?:[A-Z]'?\s*)?
    (?=[(\[{⦃⟨])
    """,
    re.IGNORECASE | re.VERBOSE,
)
_MARKERS = re.compile(r"(?:^|(?<=\s)|(?<=[,;]))(?:\(([1-9a-z])\)|([1-9])[.)](?=\s))\s*")
_BOUND = re.compile(r"\s*(<=?|>=?|≤|≥)\s*")
_COMPARISON = re.compile(r"\s*(<=?|>=?|≤|≥|≠|!=)\s*")
_EQUALS = re.compile(r"\s*(?:(?<![<>!=])==?(?!=)|≈|:=)\s*")
_SPACE_OR_COMMA = re.compile(r"\s*,\s*|\s+")
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_COMMA_SPACE = re.compile(r",\s")
_VARIABLE = re.compile(r"([^\W\d_])(?:_\{?\w{1,2}\}?)?'?")
_LABEL = re.compile(
    r"""
    (?:the\s+)?
    (?:m?\s*[∠△]\s*)?
    (?:
        [A-Z]{2,4}'?                                                # AB
        |[^\W\d_]{3,}(?:['-][^\W\d_]+)*(?:\s+[^\W\d_]+){0,7}      # area of the circle
        |m?\s*∠\s*[A-Z0-9]{1,4}                                     # m∠ABC
        |[A-Za-z]+(?:_\{?\w+\}?|\s[a-z]+)                          # v_max
        |[A-Za-z]{1,3}\s?\([^()=]{1,12}\)                           # f(2)
        |\([a-z](?:\s*,\s*[a-z])+\)                                 # (x, y)
    )
    """,
    re.VERBOSE,
)
_SYMBOL_LABEL = re.compile(
    r"""
    (?:
        p[HK][ab]?|pOH|[EK][a-z]                                    # pH, Ek
        |[A-Za-z]{1,3}'{1,2}\s?\([^()=]{1,12}\)                      # f'(2)
        |Δ\s*[A-Za-z](?:_\{?\w+\}?)?°?                             # ΔH
        |\|\s*[A-Z]{2}\s*\|                                         # |AB|
        |d[a-z]\s*/\s*d[a-z]                                        # dy/dx
        |[xyz]-[^\W\d_]{3,}(?:\s+[^\W\d_]+){0,3}                   # y-intercept
        |S_?\s*\{?\s*△\s*[A-Z]{3}\s*\}?                           # S△ABC
        |[A-Za-z]{1,2}(?:\s*:\s*[A-Za-z]{1,2})+                     # a:b
    )
    """,
    re.VERBOSE,
)
_SEGMENT = re.compile(r"[A-Z]{2}|\|[A-Z]{2}\|")
_INDEXED = re.compile(r"[^\W\d_xyz][0-9]{1,2}")  # `R1`; x_1 and x_2 are roots of x
_INDEX = re.compile(r"(?<![\w∠])(?<!∠ )([^\W\d_])([0-9]{1,2})(?=\s*=)")
_ANY_INDEX = re.compile(r"[^\W\d_]_?\{?[0-9]")
_SUBSCRIPT_SIGNS = re.compile(r"[\s_{}]")
_ANGLE_VALUE = re.compile(
    r"(?:sin|cos|tan|cot|sec|csc)\s*\(?\s*(?:∠\s*)?(?:[A-Z]{1,3}|[\u03b1-\u03c9])\s*\)?"
)
_MODULUS = re.compile(r"\|\s*([a-z])\s*\|\s*(<=?|≤)\s*(.+)")
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
_ASCII_BOUNDS = {"≤": "<=", "≥": ">="}
_UNICODE_SIGNS = {"<=": "≤", ">=": "≥", "!=": "≠"}
_MIRRORED = {">": "<", "≥": "≤"}


@dataclass(frozen=True)
class Parts:
    """The parts of an answer.

    kind: "list", "set", "steps" for `(1) … (2) …`, or a pair of brackets for points and intervals.
    alternatives: whether the parts are joined by "or".
    """

    kind: str
    items: tuple[str, ...]
    alternatives: bool = field(default=False, compare=False)

    @property
    def ordered(self) -> bool:
        """Whether the order of the parts counts."""
        return self.kind not in ("list", "set")


def parts(text: str) -> Parts | None:
    """Return the parts of a list, set, point or interval; None for any other text."""
    if text.casefold() in _EMPTY_SETS:
        return Parts("set", ())
    if "".join(text.split()).casefold() in _ALL_NUMBERS:
        return Parts("()", ("-∞", "∞"))
    if interval := _interval(text):
        return interval
    text = _MEMBER.sub("", _without_name(text))
    unnamed = _POINT_NAME.sub("", text)
    if enclosed(unnamed) and (group := _bracketed(unnamed)):
        return group
    pieces = split_outside_brackets(text, _UNION)
    if len(pieces) > 1 and all(map(enclosed, pieces)):
        return Parts("list", tuple(pieces))
    pieces = split_outside_brackets(join_digits(text), _LIST)
    if len(pieces) > 1 and all(pieces):
        return Parts("list", tuple(pieces), alternatives=bool(_OR.search(text)))
    return _both_signs(text)


def loose_parts(text: str) -> Parts | None:
    """Return the integers of `2,100` or `2 100`, which are two if the gold answer has two."""
    pieces = _SPACE_OR_COMMA.split(text)
    if len(pieces) > 1 and all(map(_INTEGER.fullmatch, pieces)):
        return Parts("list", tuple(pieces))
    return None


def equation(text: str) -> tuple[str, str] | None:
    """Return the first and the last side of an equation or a chain of equations.

    A variable is put on the left: `5 = x` gives `x` and `5`.
    """
    if "=" not in text and "≈" not in text:
        return None
    sides = split_outside_brackets(text, _EQUALS)
    left = sides[0]
    right = sides[-1]
    if len(sides) < 2 or not left or not right:
        return None
    if variable(right) and not variable(left) and not is_label(left):
        return right, left
    return left, right


def variable(text: str) -> str | None:
    """Return the letter of a variable without its subscript: x_1 and x_2 are roots of x."""
    match = _VARIABLE.fullmatch(text)
    return match[1] if match else None


def is_label(text: str) -> bool:
    """Return whether the left side of an equation only names the right side.

    `AB`, `m∠ABC`, `Area`, `f(2)` and `pH` are labels.
    """
    if is_angle_value(text) or text.split("(")[0].strip() in _FUNCTIONS:
        return False
    return bool(_LABEL.fullmatch(text) or _SYMBOL_LABEL.fullmatch(text))


def is_angle_value(text: str) -> bool:
    """Return whether the text is `cos(A)` or `tan θ`, which names a value but no label."""
    return bool(_ANGLE_VALUE.fullmatch(text))


def different_labels(a: str, b: str) -> bool:
    """Return whether two left sides cannot name the same: `R1` and `R_2`, `pH` and `pOH`.

    `AB`, `BA` and `|AB|` are one segment, and different from `AC`.
    """
    a = _SUBSCRIPT_SIGNS.sub("", a)
    b = _SUBSCRIPT_SIGNS.sub("", b)
    if _SEGMENT.fullmatch(a) and _SEGMENT.fullmatch(b):
        return sorted(a.strip("|")) != sorted(b.strip("|"))
    if is_indexed(a) and is_indexed(b):
        return a != b
    if _SYMBOL_LABEL.fullmatch(a) or _SYMBOL_LABEL.fullmatch(b) or (":" in a and ":" in b):
        return a != b
    return False


def is_indexed(text: str) -> bool:
    """Return whether the text is a name with an index that counts: `R_1` or `v0`, not `x_1`."""
    return bool(_INDEXED.fullmatch(_SUBSCRIPT_SIGNS.sub("", text)))


def with_subscripts(text: str, other: str) -> str:
    """Write `R1 = 5, R2 = 3` as `R_1 = 5, R_2 = 3`, for comparison with `other`.

    Only letters with the index 0 or 1 have indices for sure: `r2 = 9` may be the square of r. The
    text is unchanged if `other` is an equation without indices: `v0 = 5` is not `v = 5`.
    """
    if "=" in other and not _ANY_INDEX.search(other):
        return text
    letters = {letter for letter, index in _INDEX.findall(text) if index in ("0", "1")}
    if not letters:
        return text

    def with_subscript(name: re.Match[str]) -> str:
        return f"{name[1]}_{name[2]}" if name[1] in letters else name[0]

    return _INDEX.sub(with_subscript, text)


def inequality(text: str) -> tuple[str, str, str] | None:
    """Return the left side, the sign (<, ≤ or ≠) and the right side: `x > 2` is `2 < x`."""
    sides = _COMPARISON.split(text)
    if len(sides) != 3 or not sides[0] or not sides[2]:
        return None
    left, sign, right = sides
    sign = _UNICODE_SIGNS.get(sign, sign)
    if sign in _MIRRORED:
        return right, _MIRRORED[sign], left
    return left, sign, right


def steps(text: str) -> Parts | None:
    """Return the parts of `(1) 3 (2) 4`, marked by consecutive digits or letters from the first."""
    if text[:1] not in ("(", "1"):
        return None
    marks = list(_MARKERS.finditer(text))
    if len(marks) < 2 or marks[0].start() != 0:
        return None
    names = [mark[1] or mark[2] for mark in marks]
    if names[0] not in ("1", "a"):
        return None
    for before, after in pairwise(names):
        if ord(after) - ord(before) != 1:
            return None
    ends = [mark.start() for mark in marks[1:]]
    ends.append(len(text))
    items = [text[mark.end() : end].strip(" ,;") for mark, end in zip(marks, ends, strict=True)]
    return Parts("steps", tuple(items))


def _without_name(text: str) -> str:
    """Return the right side of `AB = (3, 4)`; other texts unchanged."""
    sides = equation(text) if text.count("=") == 1 else None
    if sides and enclosed(sides[1]) and (variable(sides[0]) or is_label(sides[0])):
        return sides[1]
    return text


def _bracketed(text: str) -> Parts | None:
    """Return the items in one pair of brackets, which may be a set, a point or an interval."""
    inner = text[1:-1].strip()
    kind = text[0] + text[-1]
    is_set = kind in ("{}", "⦃⦄")
    if is_set and not inner:
        return Parts("set", ())
    if kind == "{}" and "," not in inner:
        return None
    if not is_set and "," not in inner and ";" not in inner:
        return None
    if _COMMA_SPACE.search(inner):
        inner = join_digits(inner)
    items = tuple(split_outside_brackets(inner, _COMMA))
    if not all(items) or (len(items) < 2 and not is_set):
        return None
    if is_set:
        kind = "set"
    elif kind == "⟨⟩":
        kind = "()"
    return Parts(kind, items)


def _interval(text: str) -> Parts | None:
    """Return the interval of a variable with constant bounds.

    `1 < x <= 2`, `x > 3` and `|x| < 1` are intervals.
    """
    if modulus := _MODULUS.fullmatch(text):
        variable_name, sign, bound = modulus.groups()
        text = f"-({bound}) {sign} {variable_name} {sign} {bound}"
    pieces = _BOUND.split(text)
    if len(pieces) == 3:
        left, sign, right = pieces
        return _half_line(left, _ASCII_BOUNDS.get(sign, sign), right)
    if len(pieces) == 5:
        return _segment(pieces)
    return None


def _segment(pieces: list[str]) -> Parts | None:
    """Return the interval of `left sign middle second_sign right`."""
    left, sign, middle, second_sign, right = pieces
    sign = _ASCII_BOUNDS.get(sign, sign)
    second_sign = _ASCII_BOUNDS.get(second_sign, second_sign)
    if sign[0] != second_sign[0] or not variable(middle):
        return None
    if constant(left) is None or constant(right) is None:
        return None
    if sign[0] == ">":
        left, right = right, left
        sign, second_sign = second_sign, sign
    opening = "[" if "=" in sign else "("
    closing = "]" if "=" in second_sign else ")"
    return Parts(opening + closing, (left, right))


def _half_line(left: str, sign: str, right: str) -> Parts | None:
    """Return the interval of `left sign right`, of which one side is a variable."""
    is_upper_bound = sign[0] == "<"
    if variable(right) and constant(left) is not None:
        left, right = right, left
        is_upper_bound = not is_upper_bound
    if not variable(left) or constant(right) is None:
        return None
    is_closed = "=" in sign
    if is_upper_bound:
        return Parts("(]" if is_closed else "()", ("-∞", right))
    return Parts("[)" if is_closed else "()", (right, "∞"))


def _both_signs(text: str) -> Parts | None:
    """Return the two values of `2 ± √3`."""
    signs = text.count("±") + text.count("∓")
    linked = "±" in text and "∓" in text and len(text) < 100
    if signs != 1 and not linked:
        return None
    plus = text.replace("±", "+").replace("∓", "-")
    minus = text.replace("±", "-").replace("∓", "+")
    return Parts("list", (plus, minus))
