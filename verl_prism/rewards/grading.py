"""Is an answer the gold answer? Rules for text, choices and numbers first; math-verify for what they leave open."""

import logging
import re
import threading
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

logger = logging.getLogger(__name__)

RELATIVE_TOLERANCE = Fraction(1, 10**6)
MAX_MATH_CHARACTERS = 200  # sympy has no time limit in a thread: long or towering expressions are not asked about

_WRAPPERS = re.compile(
    r"^(?:\$\$?(.*?)\$\$?|\\\((.*)\\\)|\\\[(.*)\\\]|\\(?:boxed|text|mathrm)\{([^{}]*)\})$", re.DOTALL
)
_LEAD = re.compile(r"^(?:the )?(?:final )?(?:answer|option|choice)(?: is)?:? ?(?=\S)", re.IGNORECASE)
_CHOICE = re.compile(r"^(?:\(([A-H])\)|([A-H])[.:)])(?:\s+(\S.*))?$|^([A-H])$", re.IGNORECASE | re.DOTALL)
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,9}|[0-9]{1,30})(?:\.[0-9]{1,30})?|\.[0-9]{1,30}"
_NUMBER = re.compile(
    rf"^(?P<sign>[+-]?)\s*\$?\s*(?:\\[dt]?frac\{{(?P<top>{_DIGITS})\}}\{{(?P<bottom>{_DIGITS})\}}"
    rf"|(?P<value>{_DIGITS})(?:e(?P<exponent>[+-]?[0-9]{{1,2}}))?(?:\s*/\s*(?P<divisor>{_DIGITS}))?)"
    r"\s*(?P<percent>\\?%)?(?P<unit>°\s*[a-z]?|\s+(?!pi\b|and\b|or\b)[a-z][a-z/^²³23 ]+)?$",
    re.IGNORECASE,
)
_HARD_MATH = re.compile(r"__|!|(?:\^|\*\*)\D{0,3}\d{3}|(?:\^|\*\*)[^+\-*,=]*(?:\^|\*\*)")
_PROSE = re.compile(r"(?<![\\a-z])(?!sqrt|frac|infty|infinity)[a-z]{4,}", re.IGNORECASE)


def grade(answer: str, gold: str, equivalents: Sequence[str] = ()) -> bool:
    """Whether `answer` says the same as `gold` or one of its `equivalents`.

    Case, spacing, TeX wrappers and a final period do not count; `1,000`, `1000` and `1000.0` are one number, `50%` is
    `0.5` and not `50`; a unit may be left out but not be another one; a choice may be given as its letter or as its
    text where the gold names both. Never raises; may be called from any thread.
    """
    return any(_same(_clean(answer), _clean(accepted)) for accepted in (gold, *equivalents))


def _same(answer: str, gold: str) -> bool:
    if not answer or not gold:
        return False
    if _letters(answer) == _letters(gold):
        return True
    choice = _CHOICE.match(gold)
    if choice:
        return _same_choice(answer, choice)
    numbers = _number(answer), _number(gold)
    if numbers[0] and numbers[1]:
        return _same_number(numbers[0], numbers[1])
    return _same_mathematics(answer, gold)


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    text = _LEAD.sub("", " ".join(text.split()))
    while match := _WRAPPERS.match(text.strip()):
        text = next(inner for inner in match.groups() if inner is not None)
    return text.strip().removesuffix(".").rstrip()


def _letters(text: str) -> str:
    return "".join(text.split()).casefold()


def _same_choice(answer: str, gold: re.Match[str]) -> bool:
    gold_letter, gold_text = gold[1] or gold[2] or gold[4], gold[3]
    given = _CHOICE.match(answer)
    if given:
        return (given[1] or given[2] or given[4]).upper() == gold_letter.upper()
    return gold_text is not None and _same(answer, _clean(gold_text))


def _number(text: str) -> tuple[Fraction, str] | None:
    """Value and unit of a plain number; None for any other text."""
    match = _NUMBER.match(text)
    if not match:
        return None
    value = Fraction((match["top"] or match["value"]).replace(",", "")) * Fraction(10) ** int(match["exponent"] or 0)
    divisor = Fraction((match["bottom"] or match["divisor"] or "1").replace(",", ""))
    if divisor == 0:
        return None
    value = value / divisor / (100 if match["percent"] else 1)
    return (-value if match["sign"] == "-" else value), _letters(match["unit"] or "")


def _same_number(answer: tuple[Fraction, str], gold: tuple[Fraction, str]) -> bool:
    units_agree = not answer[1] or not gold[1] or answer[1] == gold[1]
    return units_agree and abs(answer[0] - gold[0]) <= RELATIVE_TOLERANCE * abs(gold[0])


_sympy_lock = threading.Lock()  # sympy's caches and the TeX parser are not made for threads


def _same_mathematics(answer: str, gold: str) -> bool:
    for text in (answer, gold):
        if len(text) > MAX_MATH_CHARACTERS or _HARD_MATH.search(text) or _PROSE.search(text):
            return False
    import math_verify  # takes a second, and most answers never come here

    try:
        with _sympy_lock:
            given, wanted = (math_verify.parse(f"${text}$", parsing_timeout=None) for text in (answer, gold))
            return bool(math_verify.verify(wanted, given, timeout_seconds=None))
    except Exception:  # sympy raises anything on odd input; an answer it cannot read is not the gold one
        logger.debug("math-verify failed on %r against %r", answer, gold, exc_info=True)
        return False
