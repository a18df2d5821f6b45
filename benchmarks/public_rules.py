"""The ten grading rules of the public implementation, in their order.

They are written from its description only, and keep its errors.
"""

import re

import math_verify

_MAX_CHARACTERS = 1024
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
_MARK = re.compile(r"\(\d\)")
_MATH_DELIMITER = re.compile(r"\$\$?|\\\(|\\\)|\\\[|\\\]")
_SIZED_FRACTION = re.compile(r"\\[dt]frac")
_TEXT = re.compile(r"\\(?:text|mathrm)\{([^{}]*)\}")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d)")


def accuracy(answer: str, gold: str, equivalents: tuple[str, ...] = ()) -> bool:
    """Return the verdict of rules 1 to 10, without the format and without equivalents.

    An empty answer or one of 1,024 characters is wrong.
    """
    answer = answer.strip()
    gold = gold.strip()
    if not answer or len(answer) >= _MAX_CHARACTERS:
        return False
    given = _split(answer)
    wanted = _split(gold)
    if len(given) <= 1 and len(wanted) <= 1:
        return _same(answer, gold, several=False)
    if len(given) != len(wanted):
        return False
    return all(_same(a, g, several=True) for a, g in zip(given, wanted, strict=True))


def _split(text: str) -> list[str]:
    """Rule 2: split at `(1)`, semicolons, or commas outside brackets."""
    marks = list(_MARK.finditer(text))
    if len(marks) >= 2 and marks[0].start() <= 2:
        return [part.strip() for part in _MARK.split(text)[1:]]
    parts = text.split(";") if ";" in text else _split_at_commas(text)
    return [part.strip() for part in parts if part.strip()]


def _split_at_commas(text: str) -> list[str]:
    parts = []
    depth = 0
    start = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return parts


def _parse(text: str) -> str:
    """Rule 3: remove TeX and thousands separators."""
    text = _MATH_DELIMITER.sub("", text)
    text = _SIZED_FRACTION.sub(r"\\frac", text)
    text = _TEXT.sub(r"\1", text)
    text = text.replace(r"\left", "").replace(r"\right", "")
    text = _THOUSANDS_COMMA.sub("", text)
    return text.strip().removesuffix(".").strip()


def _same(answer: str, gold: str, several: bool) -> bool:
    given = _parse(answer)
    wanted = _parse(gold)
    pairs = _PAIR.findall(given)  # rule 4
    gold_pairs = _PAIR.findall(wanted)
    if pairs and gold_pairs:
        return _same_pairs(pairs, gold_pairs)
    choice = _GOLD_CHOICE.match(wanted)  # rule 5
    if choice:
        return _letter(given) == next(filter(None, choice.groups()))
    if given == wanted:  # rule 6
        return True
    value = _number(given)  # rule 7
    gold_value = _number(wanted)
    if value is not None and gold_value is not None:
        return abs(value - gold_value) <= 1e-6 * abs(gold_value)
    if _words(given) and _words(given) == _words(wanted):  # rule 8
        return True
    bare = _UNIT.sub("", given)  # rule 9
    gold_bare = _UNIT.sub("", wanted)
    unit = given[len(bare) :].strip()
    gold_unit = wanted[len(gold_bare) :].strip()
    if bare and bare == gold_bare and unit == gold_unit:
        return True
    if several:  # rule 10
        return False
    return _verified([answer, given, bare], [gold, wanted, gold_bare])


def _same_pairs(pairs: list[tuple[str, str]], gold_pairs: list[tuple[str, str]]) -> bool:
    if len(pairs) != len(gold_pairs):
        return False
    for pair, gold_pair in zip(pairs, gold_pairs, strict=True):
        for number, gold_number in zip(pair, gold_pair, strict=True):
            if abs(float(number) - float(gold_number)) > 1e-6:
                return False
    return True


def _letter(text: str) -> str | None:
    if whole := _WHOLE_CHOICE.match(text):
        return whole[1].upper()
    found = []
    for rank, pattern in _CHOICES:
        found += [(-rank, match.start(), match[1].upper()) for match in pattern.finditer(text)]
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
        for answer, gold in zip(answers, golds, strict=True):
            wanted = math_verify.parse(rf"\boxed{{{gold}}}")
            if math_verify.verify(wanted, math_verify.parse(rf"\boxed{{{answer}}}")):
                return True
    except Exception:
        return False
    return False
