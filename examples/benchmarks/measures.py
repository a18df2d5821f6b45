"""Shares of right answers, overall and by what the benchmark says about a question."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """Whether an answer is right, and the `extra_info` of its question."""

    facts: Mapping[str, Any]
    correct: bool


@dataclass(frozen=True)
class Measure:
    """A share, from 0 to 1, of `count` questions or groups; None if there are none."""

    value: float | None
    count: int


Measures = dict[str, Measure]
MeasureAll = Callable[[Sequence[Answer]], Measures]


def rate(marks: Iterable[bool]) -> Measure:
    """Return the share of marks that are True."""
    values = list(marks)
    if not values:
        return Measure(None, 0)
    return Measure(sum(values) / len(values), len(values))


def accuracy(answers: Iterable[Answer]) -> Measure:
    """Return the share of right answers."""
    return rate(answer.correct for answer in answers)


def accuracy_by(answers: Sequence[Answer], fact: str) -> Measures:
    """Return the accuracy for each value of a fact, in the order of the values.

    If the fact is a list, a question counts for each of its items.
    """
    marks: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        for value in _values(answer.facts[fact]):
            marks[value].append(answer.correct)
    return {f"{fact}: {value}": rate(marks[value]) for value in sorted(marks)}


def all_right_share(answers: Iterable[Answer], names: Sequence[str]) -> Measure:
    """Return the share of groups whose answers are all right.

    names: the facts whose values name a group.
    """
    groups: dict[tuple[str, ...], list[bool]] = defaultdict(list)
    for answer in answers:
        group = tuple(answer.facts[name] for name in names)
        groups[group].append(answer.correct)
    return rate(all(marks) for marks in groups.values())


def _values(fact: str | list[str] | None) -> list[str]:
    if fact is None:
        return ["none"]
    if isinstance(fact, str):
        return [fact]
    return list(dict.fromkeys(fact))
