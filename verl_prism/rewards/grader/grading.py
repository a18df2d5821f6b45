r"""Is an answer equal to the gold answer? Judged as a careful teacher would, without the question.

An answer is written in one notation (`normalization`) and reduced to what it states
(`extraction`). Then it is compared with the gold answer as the first of these that both of them
are: choices; lists, sets, points and intervals, part by part (`structure`); equations; times and
dates; ranges; ratios; quantities; words; formulas. A date and another thing, or a range and a
single number, are different before that. math-verify is asked only about formulas that plain
arithmetic cannot read.

If a teacher could decide either way, the rules are:

- A hedge is wrong: "12 or 13" (two answers to one question) and "maybe 12". "about 12" is 12.
- A list has no order unless its items are named (`a=1, b=2`) or numbered. A point may be given
  without brackets, an interval may not. "or" joins roots like "and"; between words and letters it
  is a hedge.
- If the gold answer is a solved equation (x = 5), an unsolved one (2x = 10) is wrong. Other
  equations are equal if one is a multiple of the other, or if math-verify finds the same solutions.
- `5-6` is a range and not a difference: it is not -1. `6-5` in an answer may be 1. `3 to 4` may
  also be a ratio.
- A date equals only a date. `05/03/2020` may be in March or in May.
- `3,5` may be 3.5 or the list 3 and 5, but only the list in a gold answer.
- 50 is not 50 %. A bare number may be degrees or radians of an angle. Nouns and units may be left
  out.
- A letter decides a choice, even if the text next to it is that of another option.
- `7:30` may be in the morning or in the evening.
- Articles and hyphens do not count in words. The order of words does.
"""

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

from verl_prism.rewards.grader import (
    choices,
    dates,
    equations,
    extraction,
    matching,
    math_verify_pool,
    quantities,
    ranges,
    structure,
    words,
)
from verl_prism.rewards.grader.deadline import deadline, remaining
from verl_prism.rewards.grader.normalization import unify
from verl_prism.rewards.grader.structure import Parts

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 2000  # a longer answer must equal the gold answer literally
MAX_PARTS = 40
MAX_NESTING = 6

# How to read a kind of answer, and how to compare two of them.
_KINDS: list[tuple[Callable[[str], Any], Callable[[Any, Any], bool]]] = [
    (dates.time_of_day, dates.same_time),
    (dates.date, dates.same_date),
    (ranges.number_range, ranges.same_range),
    (quantities.ratio, quantities.same_ratio),
    (quantities.quantity, quantities.same_quantity),
]
_WHOLE = (quantities.quantity, dates.date, ranges.number_range)  # may contain a comma or "and"
_LOOSE_SPACE = re.compile(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])")
_SUBSCRIPT = re.compile(r"_(?:\{(\w*)\})?")
_CHARGE = re.compile(  # not the power of `2^3+ 5`
    r"(?<=[^\W_])\^\s*"
    r"(?:\{\s*(?P<braced>[0-9]?[+-])\s*\}(?=$|[\s,;)\]→])|(?P<bare>[0-9]?[+-])(?=$|[,;)\]→]))"
)
_DECIMAL_POINT = re.compile(r"[0-9]\.[0-9]*[1-9]")
_RESTATED = re.compile(r"(.+\S)\s+(?:\(|≈\s*)(?:or |i\.e\. )?(.+?)\)?")  # `5 km (5000 m)`


def grade(answer: str, gold: str, equivalents: Sequence[str] = ()) -> bool:
    r"""Return whether `answer` says the same as `gold` or one of its `equivalents`.

    The texts may contain TeX, Markdown, units and sentences: `grade(r"$\frac{1}{2}$ km",
    "500 m")` and `grade("The answer is (B).", "B")` are True. An empty or invisible answer is
    wrong.

    May be called from any thread and in a forked process. The verdict takes at most two seconds:
    what is not decided after `deadline.SECONDS` is wrong. The first call starts a math-verify
    process in the background. A caller that does not want it to count against the first deadline
    calls `math_verify_pool.start` before.

    Raises:
        TypeError: one of the texts is no string. Strings raise no exception, whatever they are.
    """
    for text in (answer, gold, *equivalents):
        if not isinstance(text, str):
            raise TypeError(f"{text!r} is of type {type(text).__name__}; answers are strings")
    math_verify_pool.prepare()
    with deadline():
        deciding = _safely(_deciding, answer, (gold, *equivalents)) or ()
        return any(_safely(_is_equal, answer, accepted) for accepted in deciding)


def _safely(function: Callable[[str, Any], Any], answer: str, gold: Any) -> Any:
    try:
        return function(answer, gold)
    except Exception:  # a bug in the grader must not end a training run
        logger.exception("cannot grade %.200r against %.200r", answer, gold)
        return None


def _deciding(answer: str, accepted: Sequence[str]) -> Sequence[str]:
    """Return the accepted answers that decide: only the choices if the answer states a letter."""
    if len(accepted) == 1 or len(answer) > MAX_CHARACTERS:
        return accepted
    of_letters = [gold for gold in accepted if _gold_choice(gold)]
    if not of_letters or not choices.given_choice(unify(answer)):
        return accepted
    return of_letters


def _gold_choice(gold: str) -> choices.Choice | None:
    if len(gold) > MAX_CHARACTERS:
        return None
    return choices.gold_choice(extraction.stated(unify(gold)))


def _is_equal(answer: str, gold: str) -> bool:
    """Compare two texts as they were written."""
    if not words.visible(answer) or not words.visible(gold):
        return False
    if answer.split() == gold.split():
        return True
    if max(len(answer), len(gold)) > MAX_CHARACTERS:
        return False
    answer = unify(answer)
    gold = unify(gold)
    wanted = extraction.stated(gold)
    if not wanted or (extraction.hedged(answer) and not extraction.hedged(gold)):
        return False
    choice = choices.gold_choice(wanted)
    if choice:
        given = choices.given_choice(answer)
        if given:
            return given.letters == choice.letters and not given.hedged
        wanted = choice.text or wanted
    return any(_same_statement(reading, wanted) for reading in extraction.readings(answer))


def _same_statement(answer: str, gold: str) -> bool:
    """Compare two statements, the first of which may have a label or say the same twice."""
    answer = structure.with_subscripts(answer, gold)
    gold = structure.with_subscripts(gold, answer)
    if _same(answer, gold, 0):
        return True
    unlabeled = choices.without_label(answer)
    if unlabeled != answer:
        return _same(unlabeled, gold, 0)
    restated = _RESTATED.fullmatch(answer)
    return restated is not None and all(_same(text, gold, 0) for text in restated.groups())


def _same(answer: str, gold: str, depth: int) -> bool:
    """Compare two texts in the one notation, each on one line.

    depth: the number of lists and equations around them.
    """
    if not answer or not gold or depth > MAX_NESTING or remaining() <= 0:
        return False
    if _compact(answer) == _compact(gold):
        return True
    if words.is_prose(answer + gold) and words.same_words(answer, gold):
        return True
    if affirmed := words.affirmed(gold):
        return words.affirmed(answer) == affirmed
    deeper = partial(_same, depth=depth + 1)
    if "≈" in answer[1:] or "≈" in gold[1:]:
        sides = product(equations.rounded_sides(answer), equations.rounded_sides(gold))
        return any(deeper(side, gold_side) for side, gold_side in sides)
    given = _parts(answer)
    wanted = _parts(gold)
    maybe_decimal = given and not wanted and _DECIMAL_POINT.search(gold)
    if maybe_decimal and deeper(quantities.decimal_comma(answer), gold):  # `3,5` for `3.5`
        return True
    if given or wanted:
        return matching.same_parts(answer, given, gold, wanted, deeper)
    return _same_thing(answer, gold, deeper)


def _same_thing(answer: str, gold: str, same: matching.Same) -> bool:
    """Compare two texts without parts."""
    given = structure.equation(answer)
    wanted = structure.equation(gold)
    if given or wanted:
        return equations.same_equation(answer, given, gold, wanted, same)
    is_date = dates.date(answer) is not None
    if is_date != (dates.date(gold) is not None):
        return False
    if not is_date and ranges.range_against_number(answer, gold):
        return False
    for read, same_kind in _KINDS:
        thing = read(answer)
        if thing is None:
            continue
        gold_thing = read(gold)
        if gold_thing is not None:
            return same_kind(thing, gold_thing)
    return words.same_words(answer, gold) or equations.same_formula(answer, gold)


def _compact(text: str) -> str:
    r"""Remove what does not matter: `x_{1} = 2` becomes `x1=2`, `Fe^{3+}` becomes `Fe3+`."""
    text = _CHARGE.sub(r"\g<braced>\g<bare>", _SUBSCRIPT.sub(r"\1", text))
    return _LOOSE_SPACE.sub("", text)


def _parts(text: str) -> Parts | None:
    if r"\begin" in text:  # a matrix
        return None
    group = structure.steps(text)
    if not group:
        if any(read(text) for read in _WHOLE):  # `1,000`, `5 ft and 3 in`
            return None
        group = structure.parts(text)
    return group if group and len(group.items) <= MAX_PARTS else None
