"""Multiple choice: which letters does an answer choose?"""

import re
from dataclasses import dataclass

_DRESSED = r"[(\[{]?\s*([A-Ha-h])\s*[)\]}]?[.:]?"
_LINK = r"\s*(?:,\s*(?:and|or)\b|[,;&+/]|\b(?:and|or)\b)\s*(?:(?:option|choice|answer)s?\s+)?"
_ONLY_LETTERS = re.compile(
    rf"(?:(?:both|either|options?|choices?|answers?)\s*:?\s*)*{_DRESSED}(?:{_LINK}{_DRESSED})*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"(?<![^\W_])([A-Ha-h])(?![^\W_])")
_RUN = re.compile(r"[A-H]{2,8}")
_GOLD_LETTER = r"(?:\([A-H]\)|[A-H][.):]?)"
_GOLD_LETTERS = re.compile(
    rf"{_GOLD_LETTER}(?:\s*(?:,\s*and\b|[,;&]|\band\b)\s*{_GOLD_LETTER})*|\(?[a-h][).]?"
)
_LABELLED = re.compile(r"(?:\(([A-Ha-h])\)|([A-Ha-h])[.):])\s*(\S.*)", re.DOTALL)
_LABELS = re.compile(r"(?:^|(?<=[\s,;]))(?:\(([A-Ha-h])\)|([A-H])[.):])(?=\s|$)")
_DASHED = re.compile(r"([A-H])\s+(?:[-\u2013\u2014]\s+[^\W\d_]{2}|\()")
# "a" and "A" are articles where a word follows, unless they stand in brackets.
_STATED = (
    r"(?:\s*[(\[]([A-Ha-h])[)\]]|\s*((?-i:[B-H]))(?![^\W_]|'|\s*[=*/^])"
    r"|\s*([Aa])(?=\s*(?:$|[.,;:()\n]|\b(?:because|since|as|and|or)\b))|\s*([b-h])(?=\s*(?:$|[.,;:)\n])))"
)
_VERB = r"\s*(?:would be|must be|should be|is|are|was|:|=)?\s*:?\s*(?:both|either|option|choice|letter)?\s*"
_ANSWERS = re.compile(
    rf"\banswers?\b(?:\s+(?!(?:is|are|was|be)\b)[a-z]{{2,}}){{0,5}}{_VERB}{_STATED}", re.IGNORECASE
)
_OPTIONS = re.compile(
    rf"\b(?:options?|choices?)\b{_VERB}{_STATED}(?!\s+is\s+(?:not|wrong|incorrect|false))",
    re.IGNORECASE,
)
_FURTHER = re.compile(rf"[)\].]?{_LINK}[(\[]?([A-Ha-h])[)\]]?(?![^\W_]|'|\s+is\b)")
_LEADING = re.compile(
    r"\(?([A-H])\)?\s*(?:,?\s+(?:because|since|as)\b|\s+(?:is|was)\s+(?:the\s+)?(?:correct|right|best|answer))"
)
_TRAILING = re.compile(
    r"(?:but|choose|chose|pick|select|selected|is|be|it's|therefore|thus|so|hence|=|→|:)[,:]?\s+\(?([A-H])\)?[.!]?$"
)
_HEDGE = re.compile(r"\b(?:or|either)\b|/")


@dataclass(frozen=True)
class Choice:
    """The letters chosen, the text that stands beside the letter ("" without), and whether they are alternatives."""

    letters: frozenset[str]
    text: str = ""
    hedged: bool = False


def gold_choice(text: str) -> Choice | None:
    """The choice that a gold names: a letter, letters, or a letter with its text. None for any other gold."""
    if _GOLD_LETTERS.fullmatch(text):
        return _choice(text)
    if _RUN.fullmatch(text) and list(text) == sorted(set(text)):
        return Choice(frozenset(text))
    labelled = _LABELLED.fullmatch(text)
    if labelled and len(_labels(text)) <= 1:
        return Choice(_letters([labelled[1] or labelled[2]]), labelled[3].strip())
    return None


def given_choice(text: str) -> Choice | None:
    """The choice that an answer states last; None where it names no letter as its choice."""
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()] or [""]
    for line in dict.fromkeys((" ".join(lines), lines[-1])):
        if _ONLY_LETTERS.fullmatch(line.rstrip(" .!")):
            return _choice(line)
        if _RUN.fullmatch(line) and list(line) == sorted(set(line)):
            return Choice(frozenset(line))
    stated = _last(_ANSWERS, text) or _last(_OPTIONS, text)
    if stated:
        return stated
    if labels := _labels(text):
        return Choice(_letters(labels), hedged=bool(len(set(labels)) > 1 and _HEDGE.search(text)))
    line = lines[0]
    if (
        match := _LABELLED.match(line)
        or _DASHED.match(line)
        or _LEADING.match(line)
        or _TRAILING.search(lines[-1])
    ):
        return Choice(_letters([next(letter for letter in match.groups() if letter)]))
    return Choice(_letters([line])) if _LETTER.fullmatch(line) and len(lines) > 1 else None


def without_label(text: str) -> str:
    """The text beside a choice's letter: `dog` of `(C) dog`; other texts as they are."""
    labelled = _LABELLED.fullmatch(text)
    return labelled[3].strip() if labelled and len(_labels(text)) == 1 else text


def _choice(text: str) -> Choice:
    letters = _letters(_LETTER.findall(text))
    return Choice(letters, hedged=len(letters) > 1 and bool(_HEDGE.search(text.casefold())))


def _last(pattern: re.Pattern[str], text: str) -> Choice | None:
    """The last statement in `text`, with the letters joined to it: "the answer is A or B"."""
    match = None
    for match in pattern.finditer(text):  # noqa: B007
        pass
    if match is None:
        return None
    letters, end = [next(letter for letter in match.groups() if letter)], match.end()
    while further := _FURTHER.match(text, end):
        letters.append(further[1])
        end = further.end()
    return Choice(
        _letters(letters), hedged=len(letters) > 1 and bool(_HEDGE.search(text[match.end() : end]))
    )


def _labels(text: str) -> list[str]:
    return [bracketed or plain for bracketed, plain in _LABELS.findall(text)]


def _letters(letters: list[str]) -> frozenset[str]:
    return frozenset(letter.upper() for letter in letters)
