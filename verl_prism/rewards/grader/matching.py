"""Comparison of answers that have parts: lists, sets, points, intervals and numbered steps."""

import re
from collections.abc import Callable

from verl_prism.rewards.grader import structure
from verl_prism.rewards.grader.structure import Parts

Same = Callable[[str, str], bool]  # whether two texts say the same: an answer and a gold answer

_SIGNS = re.compile(r"[0-9=+*/^<>\\√π|∞_]")
_POINT_BRACKETS = ("()", "[]")


def same_parts(
    answer: str, given: Parts | None, gold: str, wanted: Parts | None, same: Same
) -> bool:
    """Return whether an answer and a gold answer, at least one of which has parts, are equal.

    given: the parts of `answer`; wanted: the parts of `gold`.
    """
    if given and given.alternatives and not wanted:  # `1/2 or 0.5`
        return all(same(item, gold) for item in given.items)
    if not given:
        loose = structure.loose_parts(answer) if wanted else None
        given = loose or Parts("list", (answer,))
    if not wanted:
        wanted = structure.loose_parts(gold) or Parts("list", (gold,))
    kinds = {given.kind, wanted.kind}
    if kinds == {"list"} and len(given.items) == len(wanted.items) == 1:
        return False
    if given.alternatives and not wanted.alternatives and not _SIGNS.search(answer):
        return False
    if "steps" in kinds:
        return _same_in_order(given, wanted, same)
    if given.ordered or wanted.ordered:
        return _same_points(given, wanted, same)
    if _is_named(wanted) and not _is_named(given):  # `1, 2` for `x = 1, y = 2`
        return _same_in_order(given, wanted, same)
    if "set" in kinds:
        return _same_sets(given, wanted, same)
    return _same_lists(given, wanted, same)


def _same_points(given: Parts, wanted: Parts, same: Same) -> bool:
    """Compare points and intervals. A point may be given without brackets, an interval may not."""
    if given.ordered and wanted.ordered:
        return given.kind == wanted.kind and _same_in_order(given, wanted, same)
    kinds = (given.kind, wanted.kind)
    is_point = any(kind in _POINT_BRACKETS for kind in kinds)
    if "list" not in kinds or not is_point or len(given.items) < 2:
        return False
    return _same_in_order(_by_name(given), _by_name(wanted), same)


def _same_in_order(given: Parts, wanted: Parts, same: Same) -> bool:
    return len(given.items) == len(wanted.items) and all(map(same, given.items, wanted.items))


def _same_sets(given: Parts, wanted: Parts, same: Same) -> bool:
    """Return whether each item of one set is in the other."""
    for item in given.items:
        if not any(same(item, other) for other in wanted.items):
            return False
    return all(any(same(item, other) for item in given.items) for other in wanted.items)


def _same_lists(given: Parts, wanted: Parts, same: Same) -> bool:
    """Return whether two lists have the same items in any order."""
    left = list(wanted.items)
    for item in given.items:
        found = next((other for other in left if same(item, other)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _is_named(group: Parts) -> bool:
    """Return whether the items are values of different variables: `x = 1, y = 2`."""
    names = set()
    for item in group.items:
        sides = structure.equation(item)
        if not sides:
            return False
        variable = structure.variable(sides[0])
        if not variable and not structure.is_label(sides[0]):
            return False
        names.add(sides[0] if structure.is_indexed(sides[0]) else variable or sides[0])
    return len(names) == len(group.items) > 1


def _by_name(group: Parts) -> Parts:
    """Put `y = 2, x = 1` in the order of a point's coordinates."""
    if not _is_named(group):
        return group
    return Parts(group.kind, tuple(sorted(group.items)))
