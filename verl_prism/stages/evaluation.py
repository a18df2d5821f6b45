"""The stage `eval`: each policy answers the held-out questions, sampled several times and once greedily, and is graded.

Writes to the output folder: `responses.jsonl` (every response with its marks), `results.json` and `results.md` (means
with 95 % intervals over questions) and `examples.png` (what each policy answered to a few questions).
"""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from verl_prism.config import Eval, Prism
from verl_prism.errors import UserError
from verl_prism.report.intervals import Interval, mean_interval, rate_interval
from verl_prism.report.metrics import MetricsLog
from verl_prism.report.picture import draw_examples
from verl_prism.report.table import results_markdown
from verl_prism.response import Response, parse_response
from verl_prism.rewards.score import compute_score
from verl_prism.rollout.sampler import PolicySampler, Sample
from verl_prism.run_folder import RunFolder

Row = Mapping[str, Any]
Marks = dict[str, bool | int | None]
Measure = Callable[[Response, Row], Mapping[str, bool | None]]
OWN_MARKS = ("accuracy", "format", "length")


@dataclass(frozen=True)
class Answers:
    """What one policy answered: samples[Q][S] and greedy[Q], with marks of the same shapes."""

    samples: list[list[Sample]]
    greedy: list[Sample]
    sample_marks: list[list[Marks]]
    greedy_marks: list[Marks]


def run_eval(prism: Prism) -> dict[str, float | str]:
    """Evaluate `prism.eval.policies` one after the other; returns each one's accuracy for the summary."""
    rows = read_questions(prism)
    measure = load_measure(prism.eval.metrics)
    answers: dict[str, Answers] = {}
    with MetricsLog(RunFolder(prism.output)) as log:
        log.total(len(prism.eval.policies) * len(rows) * (prism.eval.samples + 1))
        for name, folder in prism.eval.policies.items():
            log.note(f"{name}: starting vLLM")
            answers[name] = answer(
                prism, folder, rows, measure, _counter(log, name, len(answers), rows, prism.eval)
            )
        log.note("writing results")
        write_responses(prism.output / "responses.jsonl", rows, answers)
        results = summarise(prism, rows, answers)
        (prism.output / "results.json").write_text(
            json.dumps(results, indent=2) + "\n", encoding="utf-8"
        )
        (prism.output / "results.md").write_text(results_markdown(results), encoding="utf-8")
        draw_examples(prism.output / "examples.png", rows, answers)
    return {
        f"{name} accuracy": _percent(policy["accuracy"])
        for name, policy in results["policies"].items()
    }


def read_questions(prism: Prism) -> list[Row]:
    rows = pq.read_table(prism.data.heldout).to_pylist()
    wanted = prism.eval.questions
    if wanted is not None and wanted > len(rows):
        raise UserError(
            f"prism.eval.questions={wanted}, but {prism.data.heldout} has {len(rows)} rows"
        )
    return rows[:wanted]


def load_measure(spec: str | None) -> Measure:
    """The function named by "path/to/file.py:function", for marks of the task's own; none without a name."""
    if spec is None:
        return lambda response, row: {}
    path, _, name = spec.rpartition(":")
    if not Path(path).is_file():
        raise UserError(
            f"prism.eval.metrics={spec}: no file {path!r}; write path/to/file.py:function"
        )
    loader = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    if not hasattr(module, name):
        raise UserError(f"prism.eval.metrics={spec}: {path} has no function {name!r}")
    return getattr(module, name)


def answer(
    prism: Prism,
    policy: Path,
    rows: Sequence[Row],
    measure: Measure,
    on_progress: Callable[[int], None],
) -> Answers:
    """Sample and mark one policy. on_progress: gets the number of responses made so far."""
    tokens, sampled = prism.data.max_response_tokens, len(rows) * prism.eval.samples
    with PolicySampler(policy, prism.hardware, prism.seed) as sampler:
        samples = sampler.sample(
            rows,
            prism.eval.samples,
            prism.eval.temperature,
            prism.eval.top_p,
            tokens,
            lambda done, _: on_progress(done),
        )
        greedy = sampler.sample(
            rows, 1, 0.0, 1.0, tokens, lambda done, _: on_progress(sampled + done)
        )
    return Answers(
        samples,
        [only for (only,) in greedy],
        [
            [mark(sample, row, measure) for sample in group]
            for group, row in zip(samples, rows, strict=True)
        ],
        [mark(only, row, measure) for (only,), row in zip(greedy, rows, strict=True)],
    )


def mark(sample: Sample, row: Row, measure: Measure) -> Marks:
    """accuracy and format (True or False), length in tokens, and the task's own marks, None where undefined."""
    score = compute_score(
        row["data_source"], sample.text, row["reward_model"]["ground_truth"], row.get("extra_info")
    )
    own = measure(parse_response(sample.text), row)
    if clash := set(own) & set(OWN_MARKS):
        raise UserError(
            f"prism.eval.metrics: {sorted(clash)[0]!r} is a mark that every task has; name yours otherwise"
        )
    return {
        "accuracy": score["acc"] == 1.0,
        **own,
        "format": score["format"] == 1.0,
        "length": sample.tokens,
    }


def summarise(prism: Prism, rows: Sequence[Row], answers: Mapping[str, Answers]) -> dict[str, Any]:
    """The content of results.json: how it was measured and, for each policy and mark, an `Interval`."""
    settings = prism.eval
    return {
        "heldout": str(prism.data.heldout),
        "questions": len(rows),
        "samples": settings.samples,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": prism.seed,
        "confidence": 0.95,
        "policies": {
            name: {
                "folder": str(settings.policies[name]),
                **{mark: asdict(i) for mark, i in intervals(given).items()},
            }
            for name, given in answers.items()
        },
    }


def intervals(answers: Answers) -> dict[str, Interval]:
    """Mark -> interval over all sampled responses; `greedy_accuracy` over the greedy ones."""
    marks = answers.sample_marks
    result = {
        name: (mean_interval if name == "length" else rate_interval)(
            [
                [float(value) for each in group if (value := each[name]) is not None]
                for group in marks
            ]
        )
        for name in marks[0][0]
    }
    return result | {
        "greedy_accuracy": rate_interval(
            [[float(bool(each["accuracy"]))] for each in answers.greedy_marks]
        )
    }


def write_responses(path: Path, rows: Sequence[Row], answers: Mapping[str, Answers]) -> None:
    """One line per response; `sample` counts from 0 and is null for the greedy one."""
    with open(path, "w", encoding="utf-8") as file:
        for name, given in answers.items():
            for question, row in enumerate(rows):
                samples = [given.greedy[question], *given.samples[question]]
                marks = [given.greedy_marks[question], *given.sample_marks[question]]
                gold = row["reward_model"]["ground_truth"]
                for number, (sample, marked) in enumerate(zip(samples, marks, strict=True)):
                    line = {
                        "policy": name,
                        "question": question,
                        "sample": number - 1 if number else None,
                        "gold": gold,
                    }
                    line |= asdict(sample) | {
                        "fault": parse_response(sample.text).fault,
                        "marks": marked,
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _counter(
    log: MetricsLog, name: str, before: int, rows: Sequence[Row], settings: Eval
) -> Callable[[int], None]:
    """Report progress over all policies, of which `before` are done."""
    start = before * len(rows) * (settings.samples + 1)

    def count(done: int) -> None:
        log.step(start + done, {})
        log.note(name)

    return count


def _percent(interval: Mapping[str, Any]) -> str:
    return "none" if interval["mean"] is None else f"{interval['mean']:.1%}"
