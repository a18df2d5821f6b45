"""Stage `eval`: the results for verl's loggers."""

from collections.abc import Mapping, Sequence
from typing import Any

from verl_prism.config import Prism, flatten
from verl_prism.measures.marks import Marks
from verl_prism.report.step_samples import RESPONSE, ROW, evenly
from verl_prism.trainer.tracking import log_results

SHOWN = ("mean", "difference")  # of what results.json has of an interval
Responses = Mapping[str, Sequence[tuple[str, Marks]]]  # text and marks by policy and question


def log_evaluation(prism: Prism, policies: Mapping[str, dict[str, Any]], first: Responses) -> None:
    """Send what is measured of each policy, and its first responses to some questions.

    policies: as in results.json. first: the first sampled response to each question.
    """
    metrics = {}
    for name, results in policies.items():
        for key, value in flatten(results):
            measure, _, kind = key.rpartition(".")
            if kind in SHOWN and value is not None:
                metrics[f"{name}/{measure.replace('.', '/')}"] = value
    log_results(prism, metrics, first_responses(first, prism.samples_per_step))


def first_responses(first: Responses, count: int) -> list[dict[str, Any]]:
    """Return each policy's first response to at most `count` questions, with its marks."""
    samples = []
    questions = len(next(iter(first.values())))
    for question in evenly(range(questions), count):
        for name, responses in first.items():
            text, marks = responses[question]
            samples.append({ROW: question, "policy": name, RESPONSE: text, **marks})
    return samples
