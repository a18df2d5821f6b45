"""Multiple choice: which letters, A to J, does an answer choose?

`I` is also a pronoun and a Roman numeral, and `i` is the imaginary unit. So they are choices in
fewer places than the other letters.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_DRESSED = r"(?:[(\[{]\s*)?([A-Ja-j])(?:\s*[)\]}])?[.:]?"
_FIGURES = (
    "figures?|fig|images?|pictures?|graphs?|diagrams?|panels?|points?|circuits?|objects?|shapes?"
)
_LINK = (
    r"\s*(?:,\s*(?:and|or)\b|[,;&+/]|\b(?:and|or)\b)\s*"
    r"(?:(?:option|choice|answer)s?\s+)?"
)
_ONLY_LETTERS = re.compile(
    rf"(?:(?:only|just|both|either|options?|choices?|answers?|{_FIGURES})\b\.?\s*:?\s*)*"
    rf"(?P<letters>{_DRESSED}(?:{_LINK}{_DRESSED})*)"
    rf"(?:\s*\b(?:only|alone))?"
    rf"(?:\s*[,(]\s*(?:and\s+)?not\s+(?P<rejected>{_DRESSED}(?:{_LINK}{_DRESSED})*)\)?)?",
    re.IGNORECASE,
)
_SPACED = re.compile(r"[A-J](?:\s+[A-J])+|\([A-J]\)(?:\s*\([A-J]\))+")
_LETTER = re.compile(r"(?<![^\W_])([A-Ja-j])(?![^\W_])")
_RUN = re.compile(r"[A-J]{2,10}")
_GOLD_LETTER = r"(?:\([A-J]\)|[A-J][.):]?)"
_GOLD_LETTERS = re.compile(
    rf"{_GOLD_LETTER}(?:\s*(?:,\s*and\b|[,;&]|\band\b)\s*{_GOLD_LETTER})*|\(?[a-h][).]?"
)
_I = r"(?:I(?!.*\bII))"  # no Roman numeral
_LABELED = re.compile(
    rf"(?:\(({_I}|[A-HJa-hj])\)|({_I}(?!:)|[A-HJa-hj])[.):])\s*(?P<text>\S.*)", re.DOTALL
)
_LABELS = re.compile(
    rf"(?:^|(?<=[\s,;]))(?:\(({_I}|[A-HJa-hj])\)|({_I}(?!:)|[A-HJ])[.):])(?=\s|$)", re.DOTALL
)
_INITIALS = re.compile(r"[IJ]\.|[A-Z]\.\s*[A-Z]\.\s*[A-Z]")  # of a name, if gold begins so
_DASHED = re.compile(rf"({_I}|[A-HJ])\s+(?:[-\u2013\u2014]\s+(?:[^\W\d_]{{2}}|[0-9$])|\()")

# The letter after "the answer is". A bare "a" or "A" before a word is an article.
_STATED = (
    r"(?:"
    r"\s*[(\[]([A-Ja-j])[)\]]"
    r"|\s*((?-i:[B-HJ]))(?![^\W_]|'|\s*[=*/^])"
    r"|\s*([Aa])(?=\s*(?:$|[.,;:()\n]|\b(?:because|since|as|and|or)\b))"
    r"|\s*([b-j])(?=\s*(?:$|[.,;:)\n]))"
    r")"
)
_VERB = (
    r"\s*(?:would be|must be|should be|is|are|was|:|=)?\s*:?\s*"
    r"(?:both|either|option|choice|letter)?\s*"
)
_ANSWERS = re.compile(
    rf"\banswers?\b(?:\s+(?!(?:is|are|was|be)\b)[a-z]{{2,}}){{0,5}}{_VERB}{_STATED}", re.IGNORECASE
)
_OPTIONS = re.compile(
    rf"\b(?:options?|choices?)\b{_VERB}{_STATED}(?!\s+is\s+(?:not|wrong|incorrect|false))",
    re.IGNORECASE,
)
_FURTHER = re.compile(rf"[)\].]?{_LINK}[(\[]?([A-HJa-hj]|I(?=\W*$))[)\]]?(?![^\W_]|'|\s+is\b)")
_LEADING = re.compile(
    r"\(?([A-HJ])\)?\s*"
    r"(?:,?\s+(?:because|since|as)\b|\s+(?:is|was)\s+(?:the\s+)?(?:correct|right|best|answer))"
)
_TRAILING = re.compile(
    r"(?:but|choose|chose|pick|select|selected|is|be|it's|therefore|thus|so|hence|=|→|:)[,:]?"
    r"\s+\(?([A-J])\)?[.!]?$"
)
_DOUBT = re.compile(  # after a choice: `; alternatively B`, `? I doubt it`
    r"(?:\s+(?:answer|choice|option))?[\s.,;:()\]*]*"
    r"(?:\?(?!\s*(?i:yes)\b)|(?i:or|alternatively|maybe|perhaps)\b[\s,:]*"
    r"(?i:(?:it's|it is|the|option|choice|answer)\s+){0,3}[(\[]?[A-HJ](?![^\W_]|'))"
)
_HEDGE = re.compile(r"\b(?:or|either)\b|/")


@dataclass(frozen=True)
class Choice:
    """The chosen letters.

    text: the text next to the letter, "" if there is none.
    hedged: whether the letters are alternatives, as in "A or B".
    """

    letters: frozenset[str]
    text: str = ""
    hedged: bool = False


def gold_choice(text: str) -> Choice | None:
    """Return the choice of a gold answer: `B`, `A and C` or `(B) dog`; None for any other gold."""
    if _GOLD_LETTERS.fullmatch(text):
        return _choice(text)
    if _is_run(text):
        return Choice(frozenset(text))
    labeled = _LABELED.fullmatch(text)
    if labeled and len(_labels(text)) <= 1 and not _INITIALS.match(text):
        return Choice(_upper([_matched_letter(labeled)]), labeled["text"].strip())
    return None


def given_choice(text: str) -> Choice | None:
    """Return the choice that an answer states last; None if it does not choose a letter."""
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()] or [""]
    first = lines[0]
    last = lines[-1]
    for line in (" ".join(lines), last):
        if only := _ONLY_LETTERS.fullmatch(line.rstrip(" .!")):
            chosen = _choice(only["letters"])
            rejected = _choice(only["rejected"] or "")
            return None if chosen.letters & rejected.letters else chosen
        if _SPACED.fullmatch(line.rstrip(" .!")):
            return _choice(line)
        if _is_run(line):
            return Choice(frozenset(line))
    stated = _last_stated(_ANSWERS, text) or _last_stated(_OPTIONS, text)
    if stated:
        return stated
    labels = _labels(text)
    if labels:
        hedged = len(set(labels)) > 1 and bool(_HEDGE.search(text))
        return Choice(_upper(labels), hedged=hedged)
    match = _LABELED.match(first) or _DASHED.match(first)
    if not match and (leading := _LEADING.match(first)):
        hedged = bool(_DOUBT.match(first, leading.end()))
        return Choice(_upper([leading[1]]), hedged=hedged)
    match = match or _TRAILING.search(last)
    if match:
        return Choice(_upper([_matched_letter(match)]))
    if len(lines) > 1 and _LETTER.fullmatch(first):
        return Choice(_upper([first]))
    return None


def without_label(text: str) -> str:
    """Return the text next to a choice's letter: `dog` for `(C) dog`; other texts unchanged."""
    labeled = _LABELED.fullmatch(text)
    if labeled and len(_labels(text)) == 1:
        return labeled["text"].strip()
    return text


def _choice(text: str) -> Choice:
    letters = _upper(_LETTER.findall(text))
    hedged = len(letters) > 1 and bool(_HEDGE.search(text.casefold()))
    return Choice(letters, hedged=hedged)


def _last_stated(pattern: re.Pattern[str], text: str) -> Choice | None:
    """Return the last choice that `pattern` finds, with linked letters: "the answer is A or B"."""
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    match = matches[-1]
    letters = [_matched_letter(match)]
    end = match.end()
    while further := _FURTHER.match(text, end):
        letters.append(further[1])
        end = further.end()
    hedged = len(letters) > 1 and bool(_HEDGE.search(text[match.end() : end]))
    return Choice(_upper(letters), hedged=hedged or bool(_DOUBT.match(text, end)))


def _is_run(text: str) -> bool:
    """Return whether `text` is several letters in alphabetical order: `ACD`."""
    return bool(_RUN.fullmatch(text)) and list(text) == sorted(set(text))


def _labels(text: str) -> list[str]:
    return [bracketed or plain for bracketed, plain in _LABELS.findall(text)]


def _matched_letter(match: re.Match[str]) -> str:
    """Return the first group that matched."""
    return next(filter(None, match.groups()))


def _upper(letters: Iterable[str]) -> frozenset[str]:
    return frozenset(letter.upper() for letter in letters)
