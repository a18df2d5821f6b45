"""Stage `eval`: every policy answers the held-out questions and is graded.

Each question is sampled several times, and once greedily. Writes `responses.jsonl` (every response
with its marks), `results.json` and `results.md` (means with 95 % intervals over questions), and
`examples.png` (what each policy answered to a few questions).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from verl_prism.config import Eval, Prism
from verl_prism.errors import UserError
from verl_prism.report.intervals import CONFIDENCE, Interval, mean_interval, rate_interval
from verl_prism.report.metrics import MetricsLog
from verl_prism.report.picture import draw_examples
from verl_prism.report.table import results_markdown
from verl_prism.response import FormatFault, Response, parse_response
from verl_prism.rewards.own import Score, own_score
from verl_prism.rewards.score import score_response
from verl_prism.rewards.user_function import load_metrics
from verl_prism.rollout.sampler import PolicySampler, Sample, Sampling
from verl_prism.run_folder import RunFolder

Row = Mapping[str, Any]
Marks = dict[str, bool | float | None]
Measure = Callable[[Response, Row], Mapping[str, bool | None]]
OWN_MARKS = ("accuracy", "format", "reward", "length")
MEANS = ("reward", "length")  # marks that are not rates


@dataclass(frozen=True)
class GradedSample:
    """A response with its format fault, if any, and its marks."""

    sample: Sample
    fault: FormatFault | None
    marks: Marks


@dataclass(frozen=True)
class Answers:
    """One policy's responses to one question."""

    greedy: GradedSample
    samples: list[GradedSample]


def run_eval(prism: Prism) -> dict[str, float | str]:
    """Evaluate `prism.eval.policies` one after the other; return the accuracies for the summary."""
    settings = prism.eval
    folder = RunFolder(prism.output)
    rows = read_questions(prism.data.heldout, settings.max_questions)
    measure = load_measure(settings.metrics)
    per_policy = len(rows) * (settings.samples + 1)
    answers: dict[str, list[Answers]] = {}
    with MetricsLog(folder) as log:
        log.total(len(settings.policies) * per_policy)
        for name, policy in settings.policies.items():
            log.note(f"{name}: starting vLLM")
            progress = _progress(log, name, len(answers) * per_policy)
            with PolicySampler(policy, prism.hardware, prism.seed) as sampler:
                max_tokens = prism.data.max_response_tokens
                samples, greedy = sample_responses(sampler, rows, settings, max_tokens, progress)
            answers[name] = grade_responses(
                rows, samples, greedy, measure, prism.reward.function
            )
        log.note("writing results")
        policies = summarize(settings.policies, answers)
        results = {
            "heldout": str(prism.data.heldout),
            "questions": len(rows),
            "samples": settings.samples,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": prism.seed,
            "confidence": CONFIDENCE,
            "policies": policies,
        }
        write_responses(folder.responses, rows, answers)
        folder.results.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        folder.results_table.write_text(results_markdown(results), encoding="utf-8")
        draw_examples(folder.examples, rows, first_responses(answers))
    return {f"{name} accuracy": _percent(marks["accuracy"]) for name, marks in policies.items()}


def first_responses(
    answers: Mapping[str, Sequence[Answers]],
) -> dict[str, list[tuple[str, Marks]]]:
    """Return text and marks of each policy's first sampled response to each question."""
    first = {name: [given.samples[0] for given in answered] for name, answered in answers.items()}
    return {
        name: [(graded.sample.text, graded.marks) for graded in responses]
        for name, responses in first.items()
    }


def read_questions(heldout: Path, limit: int | None) -> list[Row]:
    """Return the first `limit` rows of the held-out data, or all rows.

    Raises:
        UserError: there are fewer rows than `limit`.
    """
    rows = pq.read_table(heldout).to_pylist()
    if limit is not None and limit > len(rows):
        raise UserError(f"prism.eval.max_questions={limit}, but {heldout} has {len(rows)} rows")
    return rows[:limit]


def load_measure(spec: str | None) -> Measure:
    """Return the function that computes the task's own marks; without a name, there are none."""
    return load_metrics(spec) if spec is not None else lambda response, row: {}


def sample_responses(
    sampler: PolicySampler,
    rows: Sequence[Row],
    settings: Eval,
    max_tokens: int,
    on_progress: Callable[[int], None],
) -> tuple[list[list[Sample]], list[Sample]]:
    """Return samples[Q][S] and greedy[Q] of one policy.

    on_progress: receives the number of responses so far.
    """
    sampling = Sampling(settings.samples, settings.temperature, settings.top_p, max_tokens)
    samples = sampler.sample(rows, sampling, lambda done, total: on_progress(done))
    sampled = len(rows) * settings.samples
    greedy = sampler.sample(
        rows,
        Sampling(n=1, temperature=0.0, top_p=1.0, max_tokens=max_tokens),
        lambda done, total: on_progress(sampled + done),
    )
    return samples, [only for (only,) in greedy]


def grade_responses(
    rows: Sequence[Row],
    samples: Sequence[Sequence[Sample]],
    greedy: Sequence[Sample],
    measure: Measure,
    reward: str | None = None,
) -> list[Answers]:
    """Grade samples[Q][S] and greedy[Q]; return answers[Q]. reward: `prism.reward.function`."""
    answers = []
    for row, group, only in zip(rows, samples, greedy, strict=True):
        graded = [grade_sample(sample, row, measure, reward) for sample in group]
        answers.append(Answers(grade_sample(only, row, measure, reward), graded))
    return answers


def grade_sample(
    sample: Sample, row: Row, measure: Measure, reward: str | None = None
) -> GradedSample:
    """Grade one response.

    Its marks are accuracy and format (True or False), the task's own marks (None if undefined) and
    the length in tokens. With a reward function of the user's own, the reward is a mark too, and a
    response is accurate if its `acc` is 1.

    reward: `prism.reward.function`, None for the built-in grader.
    """
    response = parse_response(sample.text)
    score = _score(response, row, reward)
    own = measure(response, row)
    if clash := set(own) & set(OWN_MARKS):
        raise UserError(
            f"prism.eval.metrics: {sorted(clash)[0]!r} is a mark that every task has; "
            "choose another name"
        )
    marks: Marks = {
        "accuracy": score["acc"] == 1.0,
        **own,
        "format": score["format"] == 1.0,
        "length": sample.tokens,
    }
    if reward is not None:
        marks["reward"] = float(score["score"])
    return GradedSample(sample, response.fault, marks)


def _score(response: Response, row: Row, reward: str | None) -> Score:
    gold = row["reward_model"]["ground_truth"]
    extra_info = row.get("extra_info")
    if reward is None:
        return score_response(response, gold, extra_info)
    return own_score(reward, row["data_source"], response, gold, extra_info)


def summarize(
    policies: Mapping[str, Path], answers: Mapping[str, Sequence[Answers]]
) -> dict[str, dict[str, Any]]:
    """Return each policy's folder and the interval of each mark, as in results.json."""
    results = {}
    for name, given in answers.items():
        marks = {mark: asdict(interval) for mark, interval in intervals(given).items()}
        results[name] = {"folder": str(policies[name]), **marks}
    return results


def intervals(answers: Sequence[Answers]) -> dict[str, Interval]:
    """Return an interval per mark over the sampled responses, and one for greedy accuracy."""
    result = {}
    for name in answers[0].greedy.marks:
        interval = mean_interval if name in MEANS else rate_interval
        result[name] = interval([_values(name, each.samples) for each in answers])
    greedy = [_values("accuracy", [each.greedy]) for each in answers]
    return result | {"greedy_accuracy": rate_interval(greedy)}


def _values(name: str, graded: Sequence[GradedSample]) -> list[float]:
    """Return the values of a mark, without the undefined ones."""
    marks = [each.marks[name] for each in graded]
    return [float(mark) for mark in marks if mark is not None]


def write_responses(
    file: Path, rows: Sequence[Row], answers: Mapping[str, Sequence[Answers]]
) -> None:
    """Write one JSON line per response; `sample` counts from 0 and is null for the greedy one."""
    with open(file, "w", encoding="utf-8") as lines:
        for policy, given in answers.items():
            for question, row in enumerate(rows):
                graded = [given[question].greedy, *given[question].samples]
                for number, each in enumerate(graded):
                    record = {
                        "policy": policy,
                        "question": question,
                        "sample": number - 1 if number else None,
                        "gold": row["reward_model"]["ground_truth"],
                        **asdict(each.sample),
                        "fault": each.fault,
                        "marks": each.marks,
                    }
                    lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def _progress(log: MetricsLog, policy: str, before: int) -> Callable[[int], None]:
    """Report the progress over all policies; `before` responses are those of earlier policies."""

    def report(done: int) -> None:
        log.step(before + done, {})
        log.note(policy)

    return report


def _percent(interval: Mapping[str, Any]) -> str:
    return "none" if interval["mean"] is None else f"{interval['mean']:.1%}"
