r"""What does an answer state?

The last `\boxed{…}`, the text after "the answer is", or the line before an explanation.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

_BOX = re.compile(r"\\(?:f?boxed|fbox)\s*\{")
_BETWEEN_BOXES = re.compile(r"^[\s$.,;&]*(?:and|or)?[\s$]*(?:[A-Za-z](?:_\{?\d\}?)?\s*=\s*)?$")
_OF_SOMETHING = r"(?:\s+(?:to|of|for)\s+[^\n:=]{1,60}?)?"
_LEAD = re.compile(
    r"^(?:(?:so|thus|therefore|hence|then|finally|ok|okay|well|answer)\b\s*[,:]?\s+)*"
    r"(?:(?:the|my|our|your|its)\s+)?(?:(?:final|correct|right|best|exact|short)\s+)*"
    rf"(?:answer|result|solution|value|option|choice)s?\b{_OF_SOMETHING}"
    r"\s*(?:\bis\b|\bare\b|\bwould be\b|\bshould be\b|\bmust be\b|\bequals\b|[:=])?\s*:?\s+(?=\S)",
    re.IGNORECASE,
)
_ANSWER = re.compile(
    r"\banswers?\b(?:\s+(?:to|of|for)\s+[^\n:=.]{1,60}?)?"
    r"\s*(?:\b(?:is|are|would be|should be|must be)\b|[:=])\s*:?\s*(?=\S)",
    re.IGNORECASE,
)
_CONNECTIVE = re.compile(
    r"^(?:(?:it|that)'s|so|thus|therefore|hence|then|finally|∴|→|=)\s*[,:]?\s+", re.IGNORECASE
)
_REASON = re.compile(
    r",?\s+(?:because|since|as (?:the|it|they|there|we|shown|can)|due to|which (?:is|means)|where"
    r"|given that|\((?:because|since|as|i\.e\.|explanation))\b.*$",
    re.IGNORECASE | re.DOTALL,
)
_GLOSS = re.compile(r"(?<=[^\s,;(])\s+\((?!or\b|not\b|and\b)[^\W\d_]{3}[^()0-9,;|/=]*\)$")
_SENTENCE_END = re.compile(
    r"(?<=[0-9%°)\]}$])[.;]\s+(?=[A-Z])|(?<=[a-z]{2})[.!]\s+(?=[A-Z])"
    r"|(?<=\W[A-Za-z])[.!]\s+"  # but not after the initial of a name
    r"(?=(?:The|This|That|These|It|It's|They|There|We|I(?!\.)|He|She|In|By|For|From|If|When|As|So|Since"
    r"|Because|Thus|Therefore|Hence|However|Explanation|Reason|Note|Option|Choice|Answer)\b)"
)
_CHANGE_OF_MIND = re.compile(
    r"^\W*(?:or|and|but|maybe|perhaps|possibly|alternatively|however|actually|wait|no|not|hmm"
    r"|either|also)\b",
    re.IGNORECASE,
)
_FURTHER_ANSWER = re.compile(r"\W*(?:[0-9A-HJ]\b|I\b(?!\s+\w))")  # `I` may be a pronoun
_FURTHER_LETTER = re.compile(r"\W*[A-J]\W*")  # `3; B`
_LONG_WORD = re.compile(r"[^\W\d_]{2,}")
MAX_BOXES = 8
_EXPLANATION_WORDS = 3
_COPULA = re.compile(
    r"^(?P<subject>[^\n=:,;]{1,80}?)\s+(?:is|are|was|were|has|have|had|equals|contains|shows"
    r"|measures|costs|will be|count|counted|see|found|get)\s+(?:equal to\s+|called\s+|exactly\s+)?"
    r"(?P<rest>\S.*)$",
    re.IGNORECASE,
)
_PREPOSITION = re.compile(r"^(?:on|to|at|in|from)\s+(?=\S)", re.IGNORECASE)
_COLON = re.compile(r"^(?P<subject>[^\W\d_][^\n=:,;0-9]{2,60}):\s+(?P<rest>\S.*)$")
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|presumably|might|could be|may be|not sure|unsure"
    r"|uncertain|i guess|i'm guessing|i don't know|cannot (?:be )?(?:determined?|tell)|can't tell"
    r"|either|unclear|neither)\b|\?\s*$",
    re.IGNORECASE,
)
_NEGATION = re.compile(
    r"\b(?:not|no|never|isn't|aren't|doesn't|neither|nor|wrong|incorrect|false|or|if)\b",
    re.IGNORECASE,
)
_FINAL = re.compile(r"(?:[\s.;,]|(?<=[^\W\d_]{2})!)+$")  # but `5!` is a factorial


class _Box(NamedTuple):
    start: int
    end: int
    content: str


def hedged(text: str) -> bool:
    """Return whether the sentence with the answer leaves it open: "maybe 12", "either A or C"."""
    start = 0
    answers = list(_ANSWER.finditer(text))
    if answers:
        last = answers[-1].start()
        start = 1 + max(text.rfind(".", 0, last), text.rfind("\n", 0, last))
    return bool(_HEDGE.search(_without_explanation(text[start:])))


def readings(text: str) -> Iterator[str]:
    """Yield the possible readings of an answer, each on one line, from the literal to the freest.

    All are readings of the last statement in `text`. None of them are alternatives that it offers.
    """
    boxed = _boxed(text)
    whole = _one_line(text if boxed is None else boxed)
    short = stated(text)
    yield whole
    if short != whole:
        yield short
    clause = _COPULA.match(short) or _COLON.match(short)
    if clause and not _NEGATION.search(clause["subject"]):
        short = _FINAL.sub("", clause["rest"])
        yield short
    bare = _PREPOSITION.sub("", short)
    if bare != short:
        yield bare


def stated(text: str) -> str:
    """Return `text` on one line, without what introduces the answer and what explains it."""
    answer = _boxed(text)
    if answer is None:
        answers = list(_ANSWER.finditer(text))
        answer = text[answers[-1].end() :] if answers else text
    answer = _one_line(_without_explanation(answer))
    answer = _LEAD.sub("", answer)
    answer = _CONNECTIVE.sub("", answer)
    return _FINAL.sub("", answer)


def _boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}` and of those listed with it, None without one."""
    boxes = [_read_box(text, box) for box in list(_BOX.finditer(text))[-MAX_BOXES:]]
    if not boxes:
        return None
    after = boxes.pop()
    content = after.content
    for before in reversed(boxes):
        between = text[before.end : after.start]
        if before.end > after.start or not _BETWEEN_BOXES.match(between):
            break
        link = " or " if " or " in f" {between} " else ", "
        content = before.content + link + content
        after = before
    return content


def _read_box(text: str, opening: re.Match[str]) -> _Box:
    """Return a box up to the brace that closes it, or up to the end of the text."""
    start = opening.end()
    depth = 1
    for position in range(start, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return _Box(opening.start(), position + 1, text[start:position])
    return _Box(opening.start(), len(text), text[start:])


def _without_explanation(text: str) -> str:
    lines = [line for line in text.split("\n") if line.strip()]
    for count in range(1, len(lines)):
        rest = " ".join(lines[count:])
        if len(_LONG_WORD.findall(rest)) >= _EXPLANATION_WORDS:
            if not _CHANGE_OF_MIND.match(rest) and not _FURTHER_ANSWER.match(rest):
                lines = lines[:count]
            break
    text = "\n".join(lines)
    end = _SENTENCE_END.search(text)
    if end:
        rest = text[end.end() :]
        if not _CHANGE_OF_MIND.match(rest) and not _FURTHER_LETTER.fullmatch(rest):
            text = text[: end.start()]
    text = _REASON.sub("", text)
    return _GLOSS.sub("", text)


def _one_line(text: str) -> str:
    lines = [line.strip().rstrip(",;") for line in text.split("\n") if line.strip()]
    return _FINAL.sub("", "; ".join(lines))
