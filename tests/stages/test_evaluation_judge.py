"""Stage eval with a judge: both scores, what was asked, and what happens if the judge is down."""

import io
import json
from dataclasses import asdict

import pytest
from openai_endpoint import RIGHT, WRONG, Endpoint

from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.measures.marks import intervals
from verl_prism.report.table import judge_markdown
from verl_prism.rollout.sampling import Sample
from verl_prism.stages.evaluation_grading import QUESTIONS_AT_ONCE, Grader
from verl_prism.stages.evaluation_judge import open_judge

ROW = {"data_source": "pets", "reward_model": {"ground_truth": "a cat"}, "extra_info": None}


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with Endpoint() as started:
        accepts = {"kitty": RIGHT, "a tom, probably": "It may be right."}
        started.answer = lambda question: accepts.get(question["answer"], WRONG)
        yield started


@pytest.fixture
def prism(endpoint, tmp_path):
    judge = {"endpoint": endpoint.url, "model": "teacher", "cache": tmp_path / "verdicts"}
    keys = [f"prism.reward.judge.{key}={value}" for key, value in judge.items()]
    _, composed = compose_run(["stage=eval", *keys])
    return composed


def response(answer: str) -> dict:
    text = f"<caption>A pet.</caption><think>It sits.</think><answer>{answer}</answer>"
    return asdict(Sample(text, 9, False))


def no_marks(response, row):
    return {}


def grade(prism, responses: list[list[dict]]) -> tuple[list, list[dict], dict]:
    """Return marks, lines of responses.jsonl and the judge's part of results.json."""
    file = io.StringIO()
    with open_judge(prism) as judge:
        grader = Grader(no_marks, judge=judge)
        marks = grader.grade("one", [ROW] * len(responses), responses, file)
        results = judge.results()
    return marks, [json.loads(line) for line in file.getvalue().splitlines()], results


def test_scores_by_rules_and_judged_ones(prism, endpoint):
    invalid = asdict(Sample("kitty", 1, False))
    question = [response("kitty"), response("a cat"), response("a dog"), response("kitty"), invalid]
    other = [response("a tom, probably"), response("a dog"), invalid, invalid, response("a cat")]
    marks, lines, results = grade(prism, [question, other])

    means = {name: interval.mean for name, interval in intervals(marks).items()}
    assert means["accuracy"] == 2 / 8
    assert means["judged_accuracy"] == 3 / 8
    assert means["greedy_accuracy"] == 0.0
    assert means["greedy_judged_accuracy"] == 1 / 2
    assert [line["opinion"] for line in lines] == [
        *("right", "rules suffice", "wrong", "right", "rules suffice"),
        *("reply is no verdict", "wrong", "rules suffice", "rules suffice", "rules suffice"),
    ]
    counts = results["policies"]["one"]
    assert (counts["right"], counts["wrong"], counts["reply is no verdict"]) == (2, 2, 1)
    asked = [json.loads(each["messages"][1]["content"])["answer"] for each in endpoint.requests]
    assert sorted(asked) == [
        "a dog",
        "a tom, probably",
        "kitty",
    ], "equal answers that are judged together are asked about once"
    assert "| one | 2 | 2 | 1 |" in judge_markdown({"judge": results})


def test_without_a_judge_there_is_one_score():
    _, prism = compose_run(["stage=eval"])
    with open_judge(prism) as judge:
        assert judge is None
    file = io.StringIO()
    [marks] = Grader(no_marks).grade("one", [ROW], [[response("kitty")] * 2], file)
    assert "judged_accuracy" not in marks.greedy
    assert "opinion" not in file.getvalue()
    assert judge_markdown({"judge": None}) == ""


def test_a_run_that_the_judge_stopped_asks_only_what_is_new(prism, endpoint):
    questions = QUESTIONS_AT_ONCE + 1
    responses = [[response(f"a dog {number}"), response("a cat")] for number in range(questions)]
    last = f"a dog {questions - 1}"
    endpoint.answer = lambda question: 503 if question["answer"] == last else WRONG
    with pytest.raises(UserError, match=r"the judge teacher at .* is down"):
        grade(prism, responses)
    endpoint.answer = lambda question: WRONG
    endpoint.requests.clear()
    _, lines, results = grade(prism, responses)
    assert len(endpoint.requests) == 1
    assert len(lines) == 2 * questions
    assert results["policies"]["one"]["wrong"] == questions


def test_answers_without_a_verdict_count_as_wrong_and_are_counted(prism, endpoint):
    endpoint.answer = lambda question: 503
    judge = prism.reward.judge.model_copy(update={"when_down": "unjudged", "retries": 0})
    reward = prism.reward.model_copy(update={"judge": judge})
    changed = prism.model_copy(update={"reward": reward})
    marks, _, results = grade(changed, [[response("kitty"), response("kitty")]])
    assert marks[0].samples[0]["judged_accuracy"] is False
    assert results["policies"]["one"]["endpoint is down"] == 2
    assert "endpoint is down" in judge_markdown({"judge": results})
