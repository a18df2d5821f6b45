r"""Is an answer the gold answer? Judged as a careful teacher would, without knowing the question.

An answer is brought to one spelling (notation), reduced to what it states (statements), and compared as the first of
these that both sides are: choices; lists, sets, points and intervals part by part (structure); equations; times and
dates; quantities; formulas; words. math-verify judges formulas that plain arithmetic cannot read, and only those.

Where a teacher could hold either view, this is the one taken:

- Both signs of a hedge are wrong: "12 or 13" (two answers where one is asked for) and "maybe 12". "about 12" is 12.
- A list is unordered unless its items are named (`a=1, b=2`) or numbered; a point may be given without brackets, an
  interval may not. "or" joins roots as "and" does; between words and letters it is a hedge.
- Where the gold is a solved equation (x = 5), an unsolved one (2x = 10) is no answer. Other equations are the same
  where one is a multiple of the other or math-verify finds the same solutions.
- 50 is not 50 %. A bare number may be degrees or radians of an angle. Nouns may be left out, as units may.
- A letter decides a choice even where the text beside it is another option's.
- `7:30` may be morning or evening. Articles and hyphens do not count in words; the order of words does.
"""

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from verl_prism.rewards.grader import (
    arithmetic,
    choices,
    dates,
    extraction,
    math_verify_pool,
    numeric,
    quantities,
    structure,
)
from verl_prism.rewards.grader.deadline import deadline, remaining
from verl_prism.rewards.grader.normalization import unify
from verl_prism.rewards.grader.structure import Parts

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 2000  # a longer answer is right only where it is the gold to the letter
ROUNDING = 0.01  # relative, of the second side of `√2 ≈ 1.41`
MAX_PARTS = 40
MAX_NESTING = 6

_KINDS: list[tuple[Callable[[str], Any], Callable[[Any, Any], bool]]] = [
    (dates.time_of_day, dates.same_time),
    (dates.date, dates.same_date),
    (quantities.ratio, quantities.same_ratio),
    (quantities.quantity, quantities.same_quantity),
]
_LOOSE_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")
_SUBSCRIPT = re.compile(r"_(?:\{(\w*)\})?")
_SIGNS = re.compile(r"[0-9=+*/^<>\\√π|∞_]")
_BRACKETS_OR_SIGNS = re.compile(r"[0-9=+*/^<>\\√π|∞_!()\[\]{}⦃⟨]")
_WORD_EDGES = " .,;:?\"'()*…"
_EXCLAMATION = re.compile(r"(?<=[^\W\d_]{2})!+")
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})")
_ARTICLE = re.compile(r"\b(?:the|an?)\s+(?=\w\w)", re.IGNORECASE)
_ABBREVIATION = re.compile(r"(?<=\b[A-Za-z])\.(?=[A-Za-z]\b)")
_SPOKEN = str.maketrans({"△": "triangle ", "∠": "angle "})
_PLUS = re.compile(r"[-+]")
_LINEAR_TERM = re.compile(r"\s*(?:[0-9.]+\s*\*?)?\s*[a-zA-Z]?\s*(?:/\s*[0-9.]+)?\s*")
_RESTATED = re.compile(r"(.+\S)\s+(?:\(|≈\s*)(?:or |i\.e\. )?(.+?)\)?")  # `5 km (5000 m)`
_SAYS = re.compile(
    r"\W*\w+(?:[.,;:]|\s+(?:it|there|they|he|she|this|that|we|i|you)\b)", re.IGNORECASE
)
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


def grade(answer: str, gold: str, equivalents: Sequence[str] = ()) -> bool:
    """Whether `answer` says the same as `gold` or one of its `equivalents`.

    Never raises on any strings, and has a verdict within two seconds; may be called from any thread.
    """
    math_verify_pool.prepare()
    with deadline():
        return any(_is_safely(answer, accepted) for accepted in (gold, *equivalents))


def _is_safely(answer: str, gold: str) -> bool:
    try:
        return _is(answer, gold)
    except Exception:  # a fault of ours must not end a training run
        logger.exception("cannot grade %r against %r", answer[:200], gold[:200])
        return False


def _is(answer: str, gold: str) -> bool:
    if not _visible(answer) or not _visible(gold):
        return False
    if answer.split() == gold.split():
        return True
    if max(len(answer), len(gold)) > MAX_CHARACTERS:
        return False
    answer, gold = unify(answer), unify(gold)
    wanted = extraction.stated(gold)
    if not wanted or (extraction.hedged(answer) and not extraction.hedged(gold)):
        return False
    choice = choices.gold_choice(wanted)
    if choice:
        given = choices.given_choice(answer)
        if given:
            return given.letters == choice.letters and not given.hedged
        wanted = choice.text or wanted
    return any(_same_statement(given, wanted) for given in extraction.readings(answer) if given)


def _same_statement(answer: str, gold: str) -> bool:
    if _same(answer, gold, 0):
        return True
    bare = choices.without_label(answer)
    if bare != answer:
        return _same(bare, gold, 0)
    twice = _RESTATED.fullmatch(answer)
    return twice is not None and all(_same(text, gold, 0) for text in twice.groups())


def _same(answer: str, gold: str, depth: int) -> bool:
    """Whether two texts in the one spelling, each on one line, say the same."""
    if not answer or not gold or depth > MAX_NESTING or remaining() <= 0:
        return False
    if _LOOSE_SPACE.sub("", _SUBSCRIPT.sub(r"\1", answer)) == _LOOSE_SPACE.sub(
        "", _SUBSCRIPT.sub(r"\1", gold)
    ):
        return True
    if not _BRACKETS_OR_SIGNS.search(answer + gold) and _words(answer) == _words(gold) != []:
        return True
    if affirmed := _affirmed(gold):
        return _affirmed(answer) == affirmed
    if "≈" in answer[1:] or "≈" in gold[1:]:
        return any(_same(a, g, depth + 1) for a in _rounded(answer) for g in _rounded(gold))
    deeper = partial(_same, depth=depth + 1)
    groups = _parts(answer), _parts(gold)
    if groups[0] or groups[1]:
        return _same_parts(answer, groups[0], gold, groups[1], deeper)
    equations = structure.equation(answer), structure.equation(gold)
    if equations[0] or equations[1]:
        return _same_equation(answer, equations[0], gold, equations[1], deeper)
    for read, same in _KINDS:
        things = read(answer), read(gold)
        if things[0] is not None and things[1] is not None:
            return same(*things)
    return _words(answer) == _words(gold) != [] or _same_formula(answer, gold)


def _parts(text: str) -> Parts | None:
    if r"\begin" in text:  # a matrix
        return None
    group = structure.steps(text)
    if not group and (
        quantities.quantity(text) or dates.date(text)
    ):  # `1,000` and `5 ft and 3 in` are one
        return None
    group = group or structure.parts(text)
    return group if group and len(group.items) <= MAX_PARTS else None


_Same = Callable[[str, str], bool]


def _same_parts(
    answer: str, given: Parts | None, gold: str, wanted: Parts | None, same: _Same
) -> bool:
    if given and given.alternatives and not wanted:  # `1/2 or 0.5`
        return all(same(item, gold) for item in given.items)
    given = given or (structure.loose_parts(answer) if wanted else None) or Parts("list", (answer,))
    wanted = wanted or structure.loose_parts(gold) or Parts("list", (gold,))
    if (
        wanted.kind == "list"
        and given.kind == "list"
        and len(wanted.items) == 1 == len(given.items)
    ):
        return False
    if given.alternatives and not wanted.alternatives and not _SIGNS.search(answer):
        return False
    if "steps" in (given.kind, wanted.kind) or (given.ordered and wanted.ordered):
        return (given.kind == wanted.kind or "steps" in (given.kind, wanted.kind)) and _each(
            given, wanted, same
        )
    if given.ordered or wanted.ordered:
        bare = "list" in (given.kind, wanted.kind) and {"()", "[]"} & {given.kind, wanted.kind}
        return (
            bool(bare) and len(given.items) > 1 and _each(_by_name(given), _by_name(wanted), same)
        )
    if _named(wanted) and not _named(given):
        return _each(given, wanted, same)
    return _unordered(given, wanted, same)


def _each(given: Parts, wanted: Parts, same: _Same) -> bool:
    return len(given.items) == len(wanted.items) and all(map(same, given.items, wanted.items))


def _unordered(given: Parts, wanted: Parts, same: _Same) -> bool:
    """Lists item by item in any order; of sets, each item of one is in the other."""
    if "set" in (given.kind, wanted.kind):
        return all(any(same(a, b) for b in wanted.items) for a in given.items) and all(
            any(same(a, b) for a in given.items) for b in wanted.items
        )
    left = list(wanted.items)
    for item in given.items:
        found = next((other for other in left if same(item, other)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _names(group: Parts) -> list[str]:
    sides = [structure.equation(item) for item in group.items]
    return [
        side[0]
        for side in sides
        if side and (structure.variable(side[0]) or structure.is_label(side[0]))
    ]


def _named(group: Parts) -> bool:
    """Whether the items are values of different variables: x = 1, y = 2."""
    names = _names(group)
    return len(names) == len(group.items) > 1 and len(
        {structure.variable(name) or name for name in names}
    ) == len(names)


def _by_name(group: Parts) -> Parts:
    """x = 1, y = 2 in the order of a point's coordinates."""
    return Parts(group.kind, tuple(sorted(group.items))) if _named(group) else group


_Sides = tuple[str, str] | None


def _same_equation(answer: str, given: _Sides, gold: str, wanted: _Sides, same: _Same) -> bool:
    left, value = given or ("", answer)
    gold_left, gold_value = wanted or ("", gold)
    names = structure.variable(left), structure.variable(gold_left)
    if given and wanted and (names[0] or names[1]):
        if names[0] == names[1] or structure.is_label(left) or structure.is_label(gold_left):
            if same(value, gold_value):
                return True
            if _solved(left, value) and _solved(gold_left, gold_value):
                return False
        return not (names[1] and _is_constant(gold_value)) and _equivalent(
            given, wanted, answer, gold
        )
    if wanted and not given:
        return _only_names(gold_left) and same(answer, gold_value)
    if given and not wanted:
        return _only_names(left) and same(value, gold)
    assert given and wanted
    if _only_names(left) and _only_names(gold_left):
        return same(value, gold_value)
    return _equivalent(given, wanted, answer, gold)


def _only_names(side: str) -> bool:
    """Whether the left side says nothing of its own: x, AB, or the sum 3 + 5 whose value the right side is."""
    return bool(structure.variable(side)) or structure.is_label(side) or _is_constant(side)


def _solved(name: str, value: str) -> bool:
    """Whether the right side is readable and the name on the left is not in it: y = 2x, and not y = y/x."""
    others = arithmetic.evaluate(value, 0)[1]
    return others is not None and name not in others


def _rounded(text: str) -> list[str]:
    """The two sides of `√2 ≈ 1.41`, which are one answer if they are close; other texts as they are."""
    exact, sign, rounded = text.rpartition("≈")
    sides = structure.equation(exact)
    a, b = quantities.quantity(sides[1] if sides else exact), quantities.quantity(rounded)
    if not sign or not a or not b or isinstance(a.value, complex) or isinstance(b.value, complex):
        return [text.replace("≈", "=")]
    near = abs(float(a.value) - float(b.value)) <= ROUNDING * abs(float(a.value))
    return [exact.strip(), rounded.strip()] if near else []


def _is_constant(text: str) -> bool:
    return quantities.quantity(text) is not None


def _equivalent(given: tuple[str, str], wanted: tuple[str, str], answer: str, gold: str) -> bool:
    ratio = numeric.constant_ratio("({})-({})".format(*given), "({})-({})".format(*wanted))
    if ratio is not None or all(
        _LINEAR_TERM.fullmatch(term) for side in (*given, *wanted) for term in _PLUS.split(side)
    ):
        return ratio is not None
    return _verified(answer, gold)


def _same_formula(answer: str, gold: str) -> bool:
    given, wanted = structure.inequality(answer), structure.inequality(gold)
    if given and wanted:
        ratio = numeric.constant_ratio(f"({given[0]})-({given[2]})", f"({wanted[0]})-({wanted[2]})")
        return given[1] == wanted[1] and ratio is not None and (ratio > 0 or given[1] == "≠")
    if given or wanted:
        return False
    if not _BRACKETS_OR_SIGNS.search(answer + gold):  # `dog` is not d o g
        return False
    verdict = numeric.same_values(answer, gold)
    return _verified(answer, gold) if verdict is None else verdict


def _verified(answer: str, gold: str) -> bool:
    return (
        math_verify_pool.is_formula(answer)
        and math_verify_pool.is_formula(gold)
        and math_verify_pool.verified(answer, gold)
    )


def _affirmed(text: str) -> str:
    """The `yes`, `no`, `true` or `false` that `text` says, alone or before its reasons; "" for any other text."""
    words = _words(text)
    opposite = _OPPOSITES.get(words[0]) if words else None
    plain = opposite and opposite not in words and (len(words) == 1 or _SAYS.match(text))
    return words[0] if plain else ""


def _words(text: str) -> list[str]:
    for pattern, spelling in (
        (_ARTICLE, ""),
        (_HYPHEN, " "),
        (_EXCLAMATION, ""),
        (_ABBREVIATION, ""),
    ):
        text = pattern.sub(spelling, text)
    words = text.translate(_SPOKEN).casefold().split()
    return [_ORDINALS.get(bare, bare) for word in words if (bare := word.strip(_WORD_EDGES))]


def _visible(text: str) -> bool:
    return any(character.isprintable() and not character.isspace() for character in text)
