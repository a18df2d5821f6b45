"""The marks of a policy's responses: means with intervals, and differences between policies."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from verl_prism.measures.bootstrap import Values, paired_differences
from verl_prism.measures.pass_at_k import pass_at_k_intervals, powers_of_two, question_values
from verl_prism.report.intervals import Interval, mean_interval, rate_interval

Marks = dict[str, bool | float | None]
MEANS = ("reward", "length")  # marks that are not rates
GREEDY = ("accuracy", "judged_accuracy")  # marks that the greedy response has on its own, too


@dataclass(frozen=True)
class QuestionMarks:
    """The marks of one policy's responses to one question."""

    greedy: Marks
    samples: list[Marks]


def intervals(marks: Sequence[QuestionMarks]) -> dict[str, Interval]:
    """Return an interval per mark over the sampled responses, and one for greedy accuracy."""
    result = {}
    for name, values in mark_values(marks).items():
        interval = mean_interval if name in MEANS else rate_interval
        result[name] = interval(values)
    return result


def mark_values(marks: Sequence[QuestionMarks]) -> dict[str, Values]:
    """Return values[Q][S] of each mark, without undefined ones, and `greedy_accuracy`[Q][1].

    With a judge, `greedy_judged_accuracy`[Q][1] too.
    """
    result: dict[str, Values] = {}
    for name in marks[0].greedy:
        result[name] = [_values(name, each.samples) for each in marks]
    for name in GREEDY:
        if name in marks[0].greedy:
            result[f"greedy_{name}"] = [_values(name, [each.greedy]) for each in marks]
    return result


def pass_at_k(marks: Sequence[QuestionMarks]) -> dict[str, dict[str, Any]]:
    """Return pass@k over the sampled responses, {k: interval}, as in results.json."""
    found = pass_at_k_intervals(mark_values(marks)["accuracy"])
    return {str(k): asdict(interval) for k, interval in found.items()}


def comparisons(
    marks: Mapping[str, Sequence[QuestionMarks]], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Return the differences of each policy from the first one and from the one before it.

    marks: by policy, over the same questions. The differences are of every mark, of greedy accuracy
    and of pass@k, as in results.json.
    """
    values = {policy: _compared_values(given) for policy, given in marks.items()}
    found = []
    for policy, against in compared_pairs(list(marks)):
        differences = paired_differences(values[against], values[policy], resamples, seed)
        plain = {mark: asdict(difference) for mark, difference in differences.items()}
        found.append({"policy": policy, "against": against, "marks": plain})
    return found


def compared_pairs(policies: Sequence[str]) -> list[tuple[str, str]]:
    """Return (policy, the one that it is compared with), each pair once."""
    pairs = []
    for number in range(1, len(policies)):
        others = sorted({0, number - 1})
        pairs += [(policies[number], policies[against]) for against in others]
    return pairs


def _compared_values(marks: Sequence[QuestionMarks]) -> dict[str, Values]:
    values = mark_values(marks)
    accurate = values["accuracy"]
    for k in powers_of_two(len(accurate[0])):
        if k > 1:  # pass@1 is the accuracy
            values[f"pass@{k}"] = [[value] for value in question_values(accurate, k)]
    return values


def _values(name: str, marks: Sequence[Marks]) -> list[float]:
    values = [each[name] for each in marks]
    return [float(value) for value in values if value is not None]
