"""Stage `eval`: every policy answers the held-out questions and is graded.

Each question is sampled several times, and once greedily. Writes `responses.jsonl` (every response
with its marks), `results.json` and `results.md` (means with 95 % intervals over questions, and how
close each policy is to the teacher), and `examples.png` (what each policy answered to a few
questions).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_prism.config import Prism
from verl_prism.data.rows import Rows, heldout_rows
from verl_prism.errors import UserError
from verl_prism.measures.marks import Marks, QuestionMarks, comparisons, intervals, pass_at_k
from verl_prism.report.intervals import CONFIDENCE
from verl_prism.report.measures_table import measures_markdown
from verl_prism.report.metrics import MetricsLog
from verl_prism.report.picture import draw_examples
from verl_prism.report.table import categories_markdown, judge_markdown, results_markdown
from verl_prism.rollout.journal import Journal, JournalReader
from verl_prism.rollout.sampling import Finished, Sampling
from verl_prism.run_folder import RunFolder
from verl_prism.stages.evaluation_categories import by_category, read_categories
from verl_prism.stages.evaluation_grading import Grader, grade_policies, load_measure
from verl_prism.stages.evaluation_judge import open_judge
from verl_prism.stages.evaluation_loggers import log_evaluation
from verl_prism.stages.evaluation_teacher import compare_with_teacher
from verl_prism.stages.sampling import (
    journal_settings,
    sample_to_journal,
    sampling_devices,
    sampling_job,
)


def run_eval(prism: Prism) -> dict[str, float | str]:
    """Evaluate `prism.eval.policies` one after the other; return the accuracies for the summary.

    Raises EndedEarly if an early end is requested; with `prism.resume` the next run keeps the
    responses.
    """
    settings = prism.eval
    folder = RunFolder(prism.output)
    rows = read_questions(prism)
    categories = read_categories(prism, len(rows))
    measure = load_measure(settings.metrics)
    with MetricsLog(folder) as log, open_judge(prism) as judge:
        sample_policies(prism, rows, log)
        grader = Grader(measure, prism.reward.function, judge)
        marks = grade_policies(prism, rows, grader, log.note)
        policies = summarize(settings.policies, marks)
        teacher = compare_with_teacher(prism, len(rows), policies, log)
        log.note("writing results")
        results = {
            "heldout": str(prism.data.heldout),
            "questions": len(rows),
            "samples": settings.samples,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": prism.seed,
            "confidence": CONFIDENCE,
            "policies": policies,
            "teacher": teacher,
            "judge": None if judge is None else judge.results(),
            "categories": by_category(marks, categories, settings.category),
            "comparisons": comparisons(marks, settings.bootstrap, prism.seed),
        }
        folder.results.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        tables = results_markdown(results) + judge_markdown(results)
        tables += categories_markdown(results) + measures_markdown(results)
        folder.results_table.write_text(tables, encoding="utf-8")
        first = {name: FirstResponses(folder.samples(name), given) for name, given in marks.items()}
        draw_examples(folder.examples, rows, first)
    log_evaluation(prism, policies, first)
    return {f"{name} accuracy": _percent(means["accuracy"]) for name, means in policies.items()}


def sample_policies(prism: Prism, rows: Rows, log: MetricsLog) -> None:
    """Write the responses of each policy to its journal, on all devices.

    The first response to each question is the greedy one.
    """
    settings = prism.eval
    folder = RunFolder(prism.output)
    max_tokens = prism.data.max_response_tokens
    greedy = Sampling(n=1, temperature=0.0, top_p=1.0, max_tokens=max_tokens)
    sampled = Sampling(settings.samples, settings.temperature, settings.top_p, max_tokens)
    log.total(len(settings.policies) * len(rows) * (settings.samples + 1))
    with sampling_devices(prism.hardware):
        for number, (name, policy) in enumerate(settings.policies.items()):
            job = sampling_job(prism, policy, greedy, sampled)
            journal = Journal(
                folder.samples(name),
                journal_settings(job, "prism.data.heldout", prism.data.heldout, rows),
                prism.resume,
            )
            log.note(f"{name}: starting vLLM")
            report = _progress(log, name, number * len(rows), job.responses_per_row)
            sample_to_journal(job, rows, journal, folder, _encode, report)


def _encode(finished: Finished) -> tuple[int, list[dict[str, Any]]]:
    number, samples = finished
    return number, [asdict(sample) for sample in samples]


class FirstResponses(Sequence[tuple[str, Marks]]):
    """Text and marks of a policy's first sampled response to each question, read when used."""

    def __init__(self, journal: Path, marks: Sequence[QuestionMarks]) -> None:
        self._responses = JournalReader(journal)
        self._marks = marks

    def __len__(self) -> int:
        return len(self._marks)

    def __getitem__(self, question: int) -> tuple[str, Marks]:  # type: ignore[override]
        marks = self._marks[question].samples[0]
        return self._responses[question][1]["text"], marks


def read_questions(prism: Prism) -> Rows:
    """Return the first `prism.eval.max_questions` rows of the held-out data, or all rows.

    Raises:
        UserError: there are fewer rows.
    """
    rows = heldout_rows(prism)
    limit = prism.eval.max_questions
    if limit is not None and limit > len(rows):
        raise UserError(
            f"prism.eval.max_questions={limit}, but prism.data.heldout has {len(rows)} rows"
        )
    return rows[:limit]


def summarize(
    policies: Mapping[str, Path], marks: Mapping[str, Sequence[QuestionMarks]]
) -> dict[str, dict[str, Any]]:
    """Return each policy's folder, the interval of each mark and pass@k, as in results.json."""
    results = {}
    for name, given in marks.items():
        means = {mark: asdict(interval) for mark, interval in intervals(given).items()}
        results[name] = {"folder": str(policies[name]), **means, "pass_at_k": pass_at_k(given)}
    return results


def _progress(
    log: MetricsLog, policy: str, rows_before: int, responses_per_row: int
) -> Callable[[int], None]:
    """Report the progress over all policies; `rows_before` are those of earlier policies."""

    def report(rows: int) -> None:
        log.step((rows_before + rows) * responses_per_row, {})
        log.note(policy)

    return report


def _percent(interval: Mapping[str, Any]) -> str:
    return "none" if interval["mean"] is None else f"{interval['mean']:.1%}"
