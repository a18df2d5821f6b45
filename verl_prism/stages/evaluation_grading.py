"""Stage `eval`: the marks of each response.

The rules grade every response. If the judge is on, it is asked about answers in a valid format that
the rules call wrong, and `judged_accuracy` counts those that it calls right too. Both marks are
kept, so that scores by rules can be compared with scores that a judge has raised.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TextIO

from verl_prism.config import Prism
from verl_prism.errors import UserError
from verl_prism.measures.marks import Marks, QuestionMarks
from verl_prism.response import Response, parse_response
from verl_prism.rewards.opinion import Opinion
from verl_prism.rewards.own import Score, own_score
from verl_prism.rewards.score import accepted_answers, score_response
from verl_prism.rewards.user_function import load_metrics
from verl_prism.rollout.journal import JournalReader
from verl_prism.rollout.sampling import Row, Sample
from verl_prism.run_folder import RunFolder
from verl_prism.stages.evaluation_judge import EvaluationJudge

Measure = Callable[[Response, Row], Mapping[str, bool | None]]
OWN_MARKS = ("accuracy", "judged_accuracy", "format", "reward", "length")
QUESTIONS_AT_ONCE = 128  # are graded, and their answers judged, before the next ones are read


@dataclass(frozen=True)
class GradedSample:
    """A sampled response, parsed, with its marks and, if the judge is on, the judge's opinion."""

    sample: Sample
    response: Response
    marks: Marks
    opinion: Opinion | None = None


class Grader:
    """Grades the responses of a policy.

    measure: computes the task's own marks.
    reward: `prism.reward.function`, None for the built-in grader.
    judge: None if it is off.
    """

    def __init__(
        self, measure: Measure, reward: str | None = None, judge: EvaluationJudge | None = None
    ) -> None:
        self._measure = measure
        self._reward = reward
        self._judge = judge

    def grade(
        self,
        policy: str,
        rows: Sequence[Row],
        responses: Sequence[Sequence[Mapping[str, Any]]],
        lines: TextIO,
        note: Callable[[str], None] = lambda phase: None,
    ) -> list[QuestionMarks]:
        """Grade responses[Q][1 + S], the greedy one first; write each to `lines`; return marks[Q].

        Memory holds the responses to `QUESTIONS_AT_ONCE` questions at a time.

        note: reports the progress.
        """
        marks = []
        for start in range(0, len(rows), QUESTIONS_AT_ONCE):
            note(f"{policy}: grading {start}/{len(rows)}")
            questions = range(start, min(start + QUESTIONS_AT_ONCE, len(rows)))
            some_rows = [rows[question] for question in questions]
            graded = [
                self._by_rules(row, responses[question])
                for question, row in zip(questions, some_rows, strict=True)
            ]
            if self._judge is not None:
                graded = judged(self._judge, policy, some_rows, graded)
            for question, row, each in zip(questions, some_rows, graded, strict=True):
                write_responses(lines, policy, question, row, each)
                greedy, *sampled = [response.marks for response in each]
                marks.append(QuestionMarks(greedy, sampled))
        return marks

    def _by_rules(self, row: Row, responses: Sequence[Mapping[str, Any]]) -> list[GradedSample]:
        samples = [Sample(**fields) for fields in responses]
        return [grade_sample(sample, row, self._measure, self._reward) for sample in samples]


def grade_policies(
    prism: Prism, rows: Sequence[Row], grader: Grader, note: Callable[[str], None]
) -> dict[str, list[QuestionMarks]]:
    """Grade all responses, write them to `responses.jsonl`, and return their marks by policy."""
    folder = RunFolder(prism.output)
    marks = {}
    with open(folder.responses, "w", encoding="utf-8") as lines:
        for name in prism.eval.policies:
            responses = JournalReader(folder.samples(name))
            marks[name] = grader.grade(name, rows, responses, lines, note)
    return marks


def judged(
    judge: EvaluationJudge,
    policy: str,
    rows: Sequence[Row],
    graded: Sequence[Sequence[GradedSample]],
) -> list[list[GradedSample]]:
    """Return graded[Q][1 + S] with the judge's opinions, and `judged_accuracy` among the marks."""
    questions = []
    for row, responses in zip(rows, graded, strict=True):
        accepted = accepted_answers(row["reward_model"]["ground_truth"], row.get("extra_info"))
        questions += [(accepted, each.response.answer) for each in responses if _is_judged(each)]
    opinions = iter(judge.opinions(policy, questions))
    return [[_with_opinion(each, opinions) for each in responses] for responses in graded]


def _is_judged(graded: GradedSample) -> bool:
    return graded.response.valid and not graded.marks["accuracy"]


def _with_opinion(graded: GradedSample, opinions: Iterator[Opinion]) -> GradedSample:
    opinion = next(opinions) if _is_judged(graded) else Opinion.NOT_ASKED
    accuracy = graded.marks["accuracy"]
    judged_accuracy = bool(accuracy) or opinion is Opinion.RIGHT
    marks: Marks = {"accuracy": accuracy, "judged_accuracy": judged_accuracy}
    return replace(graded, marks=marks | graded.marks, opinion=opinion)


def load_measure(spec: str | None) -> Measure:
    """Return the function that computes the task's own marks; without a name, there are none."""
    return load_metrics(spec) if spec is not None else lambda response, row: {}


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
    return GradedSample(sample, response, marks)


def _score(response: Response, row: Row, reward: str | None) -> Score:
    gold = row["reward_model"]["ground_truth"]
    extra_info = row.get("extra_info")
    if reward is None:
        return score_response(response, gold, extra_info)
    return own_score(reward, row["data_source"], response, gold, extra_info)


def write_responses(
    lines: TextIO, policy: str, question: int, row: Row, graded: Sequence[GradedSample]
) -> None:
    """Write one JSON line per response; `sample` counts from 0 and is null for the greedy one.

    `opinion` is the judge's, if the judge is on.
    """
    for number, each in enumerate(graded):
        record = {
            "policy": policy,
            "question": question,
            "sample": number - 1 if number else None,
            "gold": row["reward_model"]["ground_truth"],
            **asdict(each.sample),
            "fault": each.response.fault,
            "marks": each.marks,
        }
        if each.opinion is not None:
            record["opinion"] = each.opinion
        lines.write(json.dumps(record, ensure_ascii=False) + "\n")
