"""The measures of an evaluation that do not use the discriminator, as tables."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from verl_prism.report.table import TITLES, cell, markdown_table, terminal_table

PROXIES = {
    "caption_items": "caption items",
    "reasoning_steps": "reasoning steps",
    "caption_length": "caption length",
    "reasoning_length": "reasoning length",
}
PROBES = {"perception": "perception probe", "reasoning": "reasoning probe"}
NO_TEACHER = (
    "The held-out data has no column teacher_response, or it is empty: the distances to the "
    "teacher and the probe are left out."
)
EMPTY = ""

Results = Mapping[str, Any]  # the content of results.json
Lines = list[list[str]]


def measures_table(results: Results) -> Table:
    """Return the table for a terminal: pass@k, distances to the teacher, and the fresh probe."""
    return terminal_table(_caption(results), _summary(results))


def measures_markdown(results: Results) -> str:
    """Return the sections that follow the first table of results.md."""
    parts = [
        "",
        "## pass@k",
        "In %, ± the 95 % interval over questions.",
        markdown_table(_passes(results)),
    ]
    if results["comparisons"]:
        parts += ["## Differences between policies", _differences_caption(), _differences(results)]
    parts += ["## Distance to the teacher", *_teacher_parts(results)]
    return "\n\n".join(parts).removeprefix("\n") + "\n"


def distance_cell(interval: Mapping[str, Any]) -> str:
    """Return `distance ±half the interval`; the longer half if the interval is asymmetric."""
    mean = interval["mean"]
    if mean is None:
        return "none"
    half = max(mean - interval["low"], interval["high"] - mean)
    return f"{mean:.2f} ±{half:.2f}"


def difference_cell(mark: str, difference: Mapping[str, Any]) -> str:
    """Return `difference [low, high]`, rates in percentage points."""
    if difference["difference"] is None:
        return "none"
    scale = 1 if mark in ("length", "reward") else 100
    digits = 3 if mark == "reward" else 1
    middle, low, high = (scale * difference[name] for name in ("difference", "low", "high"))
    return f"{middle:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _caption(results: Results) -> str:
    most = _largest_k(results)
    found = f"Measures without the discriminator: pass@{most} in %"
    if results["teacher"] is None:
        return f"{found}. {NO_TEACHER}"
    return (
        f"{found}; Jensen-Shannon distance to the teacher (0: equal, 1: disjoint); how often a "
        "fresh probe tells policy and teacher apart, in % (50: it cannot). Last row: what a policy "
        "equal to the teacher would get"
    )


def _summary(results: Results) -> Lines:
    """Return the header and the lines of the table for a terminal."""
    k = str(_largest_k(results))
    lines = [["policy", f"pass@{k}"]]
    for policy, metrics in results["policies"].items():
        lines.append([policy, cell("accuracy", metrics["pass_at_k"][k])])
    if results["teacher"] is None:
        return lines
    lines[0] += [*PROXIES.values(), *PROBES.values()]
    for line, metrics in zip(lines[1:], results["policies"].values(), strict=True):
        line += _distances(metrics["teacher"]) + _probes(metrics["teacher"], "accuracy")
    lines.append(["(teacher)", EMPTY, *_floors(results), *_teacher_probes(results)])
    return lines


def _teacher_parts(results: Results) -> list[str]:
    teacher = results["teacher"]
    if teacher is None:
        return [NO_TEACHER]
    return [
        _distances_caption(teacher),
        markdown_table(_distance_lines(results)),
        "## A fresh probe",
        _probe_caption(),
        markdown_table(_probe_lines(results)),
    ]


def _distances_caption(teacher: Mapping[str, Any]) -> str:
    return (
        f"Jensen-Shannon distance (base 2) between the distributions of the teacher's "
        f"{teacher['responses']} valid responses and the policy's, ± the 95 % interval over "
        "questions. The noise floor is the distance between two samples of the teacher's own "
        "distribution, of which 97.5 % are at most as large. "
        f"Of the teacher's responses, {teacher['invalid']} are invalid and {teacher['missing']} "
        "missing; these questions are left out."
    )


def _distance_lines(results: Results) -> Lines:
    lines = [["policy", *PROXIES.values(), "invalid responses left out"]]
    for policy, metrics in results["policies"].items():
        found = metrics["teacher"]
        lines.append([policy, *_distances(found), str(found["invalid"])])
    return [*lines, ["noise floor", *_floors(results), EMPTY]]


def _probe_caption() -> str:
    return (
        "How often a classifier of words, trained from scratch on half of the questions, tells the "
        "teacher's response from the policy's to one of the other questions, in %, ± the 95 % "
        "interval over questions. 50 %: it cannot. Controls, which have nothing to find: shuffled, "
        "where teacher and policy changed places at random; and the teacher's responses to two "
        "different questions."
    )


def _probe_lines(results: Results) -> Lines:
    header = ["policy"]
    for title in PROBES.values():
        header += [title, "shuffled"]
    lines = [header]
    for policy, metrics in results["policies"].items():
        accuracy = _probes(metrics["teacher"], "accuracy")
        control = _probes(metrics["teacher"], "shuffled")
        pairs = zip(accuracy, control, strict=True)
        lines.append([policy, *(each for pair in pairs for each in pair)])
    last = ["two questions of the teacher"]
    for found in _teacher_probes(results):
        last += [found, EMPTY]
    return [*lines, last]


def _passes(results: Results) -> Lines:
    found = {name: metrics["pass_at_k"] for name, metrics in results["policies"].items()}
    ks = list(next(iter(found.values())))
    lines = [["policy", *(f"pass@{k}" for k in ks)]]
    for policy, passes in found.items():
        lines.append([policy, *(cell("accuracy", passes[k]) for k in ks)])
    return lines


def _differences_caption() -> str:
    return (
        "With 95 % intervals of a bootstrap over questions, the same ones for both policies; rates "
        "in percentage points. Where the interval does not contain 0, the policies differ; if they "
        "did not, 1 interval in 20 would miss 0."
    )


def _differences(results: Results) -> str:
    marks = list(results["comparisons"][0]["marks"])
    lines = [["policies", *(TITLES.get(mark, mark) for mark in marks)]]
    for found in results["comparisons"]:
        cells = [difference_cell(mark, found["marks"][mark]) for mark in marks]
        lines.append([f"{found['policy']} minus {found['against']}", *cells])
    return markdown_table(lines)


def _distances(found: Mapping[str, Any]) -> list[str]:
    return [distance_cell(found["proxies"][name]) for name in PROXIES]


def _floors(results: Results) -> list[str]:
    highs = [results["teacher"]["proxies"][name]["high"] for name in PROXIES]
    return ["none" if high is None else f"≤{high:.2f}" for high in highs]


def _probes(found: Mapping[str, Any], which: str) -> list[str]:
    return [cell("accuracy", found["probe"][view][which]) for view in PROBES]


def _teacher_probes(results: Results) -> list[str]:
    return [cell("accuracy", results["teacher"]["probe"][view]) for view in PROBES]


def _largest_k(results: Results) -> int:
    policy = next(iter(results["policies"].values()))
    return max(int(k) for k in policy["pass_at_k"])
