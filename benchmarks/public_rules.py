"""The grading rules of the public implementation, as its description states them, ten in their order.

Written from that description alone; they are what they are, faults and all.
"""

import re

import math_verify

_LIMIT = 1024
_PAIR = re.compile(r"(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)")
_NUMBER = re.compile(r"^\$?\s*([-+]?\d+(?:\.\d+)?|[-+]?\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)
_UNIT = re.compile(r"\s*(?:°|%|[a-zA-Z]+(?:\^?\d|[²³])?(?:/[a-zA-Z]+(?:\^?\d|[²³])?)?)$")
_GOLD_CHOICE = re.compile(r"^([A-H])$|^\(([A-H])\)\s*\S|^([A-H])\.\s*[\d(\[+\-]")
_WHOLE_CHOICE = re.compile(r"^[(\[]?([A-H])[)\]]?[.:]?$", re.IGNORECASE)
_CHOICES = [
    (10, re.compile(r"(?:answer|option|choice)\s*(?:is\s+|:\s*)[(\[]?([A-H])", re.IGNORECASE)),
    (8, re.compile(r"\(([A-H])\)", re.IGNORECASE)),
    (6, re.compile(r"\b([A-H])[.)]", re.IGNORECASE)),
]


def accuracy(answer: str, gold: str, equivalents: tuple[str, ...] = ()) -> bool:
    """Rules 1 to 10 without the format: an empty answer or one of 1,024 characters is wrong. No equivalents there."""
    answer, gold = answer.strip(), gold.strip()
    if not answer or len(answer) >= _LIMIT:
        return False
    given, wanted = _split(answer), _split(gold)
    if len(given) > 1 or len(wanted) > 1:
        return len(given) == len(wanted) and all(
            _same(a, g, several=True) for a, g in zip(given, wanted, strict=True)
        )
    return _same(answer, gold, several=False)


def _split(text: str) -> list[str]:
    """Rule 2."""
    marks = list(re.finditer(r"\(\d\)", text))
    if len(marks) >= 2 and marks[0].start() <= 2:
        return [part.strip() for part in re.split(r"\(\d\)", text)[1:]]
    if ";" in text:
        return [part.strip() for part in text.split(";") if part.strip()]
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [part for part in [*parts, text[start:].strip()] if part]


def _parse(text: str) -> str:
    """Rule 3."""
    text = re.sub(r"\$\$?|\\\(|\\\)|\\\[|\\\]", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = (
        re.sub(r"\\(?:text|mathrm)\{([^{}]*)\}", r"\1", text)
        .replace(r"\left", "")
        .replace(r"\right", "")
    )
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    return text.strip().removesuffix(".").strip()


def _same(answer: str, gold: str, several: bool) -> bool:
    given, wanted = _parse(answer), _parse(gold)
    pairs = _PAIR.findall(given), _PAIR.findall(wanted)  # rule 4
    if pairs[0] and pairs[1]:
        return len(pairs[0]) == len(pairs[1]) and all(
            abs(float(x) - float(y)) <= 1e-6
            for a, b in zip(*pairs, strict=True)
            for x, y in zip(a, b, strict=True)
        )
    choice = _GOLD_CHOICE.match(wanted)  # rule 5
    if choice:
        return _letter(given) == next(filter(None, choice.groups()))
    if given == wanted:  # rule 6
        return True
    values = _number(given), _number(wanted)  # rule 7
    if values[0] is not None and values[1] is not None:
        return abs(values[0] - values[1]) <= 1e-6 * abs(values[1])
    if _words(given) and _words(given) == _words(wanted):  # rule 8
        return True
    stripped = _UNIT.sub("", given), _UNIT.sub("", wanted)  # rule 9
    units = given[len(stripped[0]) :].strip(), wanted[len(stripped[1]) :].strip()
    if stripped[0] and stripped[0] == stripped[1] and units[0] == units[1]:
        return True
    return not several and _verified(
        [answer, given, stripped[0]], [gold, wanted, stripped[1]]
    )  # rule 10


def _letter(text: str) -> str | None:
    if whole := _WHOLE_CHOICE.match(text):
        return whole[1].upper()
    found = [
        (-rank, match.start(), match[1].upper())
        for rank, pattern in _CHOICES
        for match in pattern.finditer(text)
    ]
    return min(found)[2] if found else None


def _number(text: str) -> float | None:
    text = _UNIT.sub("", text.replace(",", "")) if _NUMBER.match(text) else text
    try:
        return float(text.lstrip("$"))
    except ValueError:
        return None


def _words(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def _verified(answers: list[str], golds: list[str]) -> bool:
    try:
        return any(
            math_verify.verify(
                math_verify.parse(rf"\boxed{{{g}}}"), math_verify.parse(rf"\boxed{{{a}}}")
            )
            for a, g in zip(answers, golds, strict=True)
        )
    except Exception:
        return False
