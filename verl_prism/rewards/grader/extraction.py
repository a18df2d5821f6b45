r"""What does an answer state? The last `\boxed{…}`, what follows "the answer is", the line before an explanation."""

import re
from collections.abc import Iterator

_BOX = re.compile(r"\\(?:f?boxed|fbox)\s*\{")
_BETWEEN_BOXES = re.compile(r"^[\s$.,;&]*(?:and|or)?[\s$]*(?:[A-Za-z](?:_\{?\d\}?)?\s*=\s*)?$")
_LEAD = re.compile(
    r"^(?:(?:so|thus|therefore|hence|then|finally|ok|okay|well|answer)\b\s*[,:]?\s+)*"
    r"(?:(?:the|my|our|your|its)\s+)?(?:(?:final|correct|right|best|exact|short)\s+)*"
    r"(?:answer|result|solution|value|option|choice)s?\b(?:\s+(?:to|of|for)\s+[^\n:=]{1,60}?)?"
    r"\s*(?:\bis\b|\bare\b|\bwould be\b|\bshould be\b|\bmust be\b|\bequals\b|[:=])?\s*:?\s+(?=\S)",
    re.IGNORECASE,
)
_ANSWER = re.compile(
    r"\banswers?\b(?:\s+(?:to|of|for)\s+[^\n:=.]{1,60}?)?\s*(?:\b(?:is|are|would be|should be|must be)\b|[:=])"
    r"\s*:?\s*(?=\S)",
    re.IGNORECASE,
)
_CONNECTIVE = re.compile(
    r"^(?:(?:it|that)'s|so|thus|therefore|hence|then|finally|∴|→|=)\s*[,:]?\s+", re.IGNORECASE
)
_REASON = re.compile(
    r",?\s+(?:because|since|as (?:the|it|they|there|we|shown|can)|due to|which (?:is|means)|where|given that|"
    r"\((?:because|since|as|i\.e\.|explanation))\b.*$",
    re.IGNORECASE | re.DOTALL,
)
_GLOSS = re.compile(r"(?<=[^\s,;(])\s+\((?!or\b|not\b|and\b)[^\W\d_]{3}[^()0-9,;|/=]*\)$")
_SENTENCE_END = re.compile(
    r"(?<=[0-9%°)\]}$])[.;]\s+(?=[A-Z])|(?<=[a-z]{2}|\W[A-Za-z])[.!]\s+(?=[A-Z])"
)
_CHANGE_OF_MIND = re.compile(
    r"^\W*(?:or|and|but|maybe|perhaps|possibly|alternatively|however|actually|wait|no|not|hmm|either|also)\b",
    re.IGNORECASE,
)
MAX_BOXES = 8
_EXPLANATION_WORDS = 3
_COPULA = re.compile(
    r"^(?P<subject>[^\n=:,;]{1,80}?)\s+(?:is|are|was|were|has|have|had|equals|contains|shows|measures|costs|will be"
    r"|count|counted|see|found|get)\s+(?:equal to\s+|called\s+|exactly\s+)?(?P<rest>\S.*)$",
    re.IGNORECASE,
)
_PREPOSITION = re.compile(r"^(?:on|to|at|in|from)\s+(?=\S)", re.IGNORECASE)
_COLON = re.compile(r"^(?P<subject>[^\W\d_][^\n=:,;0-9]{2,60}):\s+(?P<rest>\S.*)$")
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|presumably|might|could be|may be|not sure|unsure|uncertain|i guess"
    r"|i'm guessing|i don't know|cannot (?:be )?(?:determined?|tell)|can't tell|either|unclear|neither)\b|\?\s*$",
    re.IGNORECASE,
)
_NEGATION = re.compile(
    r"\b(?:not|no|never|isn't|aren't|doesn't|neither|nor|wrong|incorrect|false|or|if)\b",
    re.IGNORECASE,
)
_FINAL = re.compile(r"(?:[\s.;,]|(?<=[^\W\d_]{2})!)+$")  # 5! is a factorial


def hedged(text: str) -> bool:
    """Whether the sentence in which `text` states its answer leaves it open: "maybe 12", "either A or C"."""
    answers = list(_ANSWER.finditer(text))
    start = 1 + max(text.rfind(mark, 0, answers[-1].start()) for mark in ".\n") if answers else 0
    return bool(_HEDGE.search(_without_explanation(text[start:])))


def readings(text: str) -> Iterator[str]:
    """What `text` may be read to state, from the literal reading to the freest, each on one line.

    They are readings of one statement, the last one in `text`: no two of them are alternatives that it offers.
    """
    boxed = _boxed(text)
    whole = _one_line(text if boxed is None else boxed)
    short = stated(text)
    yield whole
    if short != whole:
        yield short
    if (clause := _COPULA.match(short) or _COLON.match(short)) and not _NEGATION.search(
        clause["subject"]
    ):
        short = _FINAL.sub("", clause["rest"])
        yield short
    if (bare := _PREPOSITION.sub("", short)) != short:
        yield bare


def stated(text: str) -> str:
    """`text` on one line without what introduces the answer and without what explains it."""
    boxed = _boxed(text)
    if boxed is None:
        answers = list(_ANSWER.finditer(text))
        boxed = text[answers[-1].end() :] if answers else text
    return _FINAL.sub(
        "", _CONNECTIVE.sub("", _LEAD.sub("", _one_line(_without_explanation(boxed))))
    )


def _boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}`, with those that it is listed with; None without one."""
    boxes = [
        (box.start(), *_braced(text, box.end())) for box in list(_BOX.finditer(text))[-MAX_BOXES:]
    ]
    if not boxes:
        return None
    content = boxes[-1][1]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        between = text[before[2] : after[0]]
        if before[2] > after[0] or not _BETWEEN_BOXES.match(between):
            break
        content = f"{before[1]}{' or ' if ' or ' in f' {between} ' else ', '}{content}"
    return content


def _braced(text: str, start: int) -> tuple[str, int]:
    """What stands from `start` to the brace that closes what was opened before it, and the position after that."""
    depth = 1
    for position in range(start, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return text[start:position], position + 1
    return text[start:], len(text)


def _without_explanation(text: str) -> str:
    lines = [line for line in text.split("\n") if line.strip()]
    for count in range(1, len(lines)):
        rest = " ".join(lines[count:])
        if len(re.findall(r"[^\W\d_]{2,}", rest)) >= _EXPLANATION_WORDS:
            if not _CHANGE_OF_MIND.match(rest) and not re.match(r"\W*[0-9A-H]\b", rest):
                lines = lines[:count]
            break
    text = "\n".join(lines)
    if (end := _SENTENCE_END.search(text)) and not _CHANGE_OF_MIND.match(text[end.end() :]):
        text = text[: end.start()]
    return _GLOSS.sub("", _REASON.sub("", text))


def _one_line(text: str) -> str:
    return _FINAL.sub(
        "", "; ".join(line.strip().rstrip(",;") for line in text.split("\n") if line.strip())
    )
