"""Words of an answer, for comparison with the words of the gold answer."""

import re

_SIGNS = re.compile(r"[0-9=+*/^<>\\√π|∞_!()\[\]{}⦃⟨]")
_EDGES = " .,;:?\"'()*…"
_ARTICLE = re.compile(r"\b(?:the|an?)\s+(?=\w\w)", re.IGNORECASE)
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})")
_EXCLAMATION = re.compile(r"(?<=[^\W\d_]{2})!+")
_ABBREVIATION = re.compile(r"(?<=\b[A-Za-z])\.(?=[A-Za-z]\b)")
_SPOKEN = str.maketrans({"△": "triangle ", "∠": "angle "})
_SENTENCE_AFTER_WORD = re.compile(
    r"\W*\w+(?:[.,;:]|\s+(?:it|there|they|he|she|this|that|we|i|you)\b)", re.IGNORECASE
)
_GENOTYPE = re.compile(r"(?:([A-Za-z])(?i:\1))+")
_ROMAN = re.compile(r"[IVXMC]+|[ivxmc]+")
_ORDINALS = {
    "1st": "first",
    "2nd": "second",
    "3rd": "third",
    "4th": "fourth",
    "5th": "fifth",
    "6th": "sixth",
    "7th": "seventh",
    "8th": "eighth",
    "9th": "ninth",
    "10th": "tenth",
    "11th": "eleventh",
    "12th": "twelfth",
}
_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true", "correct": "incorrect"}


def is_prose(text: str) -> bool:
    """Return whether `text` has no digits, brackets or signs of mathematics."""
    return not _SIGNS.search(text)


def same_words(a: str, b: str) -> bool:
    """Return whether two texts have the same words, and any: `The dog.` is `dog`.

    Capitals do not count, except in genotypes: `Aa` is not `AA`.
    """
    if _is_genotype(a.strip(_EDGES), b.strip(_EDGES)):
        return _alleles(a.strip(_EDGES)) == _alleles(b.strip(_EDGES))
    words = _words(a)
    return bool(words) and words == _words(b)


def affirmed(text: str) -> str:
    """Return the `yes`, `no`, `true` or `false` that `text` says, "" for any other text.

    It stands alone, or before a sentence with reasons: `No, it is larger`.
    """
    words = _words(text)
    if not words or words[0] not in _OPPOSITES or _OPPOSITES[words[0]] in words:
        return ""
    if len(words) > 1 and not _SENTENCE_AFTER_WORD.match(text):
        return ""
    return words[0]


def visible(text: str) -> bool:
    """Return whether `text` has a character that can be seen."""
    return any(character.isprintable() and not character.isspace() for character in text)


def _is_genotype(a: str, b: str) -> bool:
    """Return whether `b` is a genotype. `XX` and `xx` may both be the Roman number 20 instead."""
    if not _GENOTYPE.fullmatch(b):
        return False
    return not (_ROMAN.fullmatch(a) and _ROMAN.fullmatch(b))


def _alleles(text: str) -> list[list[str]]:
    """Return the pairs of letters, each in one order: `aA` is `Aa`."""
    return [sorted(text[start : start + 2]) for start in range(0, len(text), 2)]


def _words(text: str) -> list[str]:
    text = _ARTICLE.sub("", text)
    text = _HYPHEN.sub(" ", text)
    text = _EXCLAMATION.sub("", text)
    text = _ABBREVIATION.sub("", text)
    words = []
    for word in text.translate(_SPOKEN).casefold().split():
        bare = word.strip(_EDGES)
        if bare:
            words.append(_ORDINALS.get(bare, bare))
    return words
