"""A reward function of the user's own, in stage rlvr and in stage eval."""

import asyncio

import pytest

from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.response import parse_response
from verl_prism.rewards.own import load_reward, own_score
from verl_prism.rewards.score import compute_judged_score
from verl_prism.rollout.sampling import Sample
from verl_prism.stages.evaluation_grading import grade_sample
from verl_prism.trainer.replay_buffer import reward_metrics

RIGHT = "<caption>A 3 and a 5.</caption><think>3 + 5 = 8.</think><answer>8</answer>"
ARGUMENTS = "data_source, solution_str, ground_truth, extra_info"
ROW = {"data_source": "digits", "reward_model": {"ground_truth": 8}, "extra_info": None}


def written(tmp_path, body: str, arguments: str = ARGUMENTS) -> str:
    file = tmp_path / "own.py"
    file.write_text(f"def reward({arguments}):\n    return {body}\n")
    return f"{file}:reward"


def test_a_number_is_enough(tmp_path):
    spec = written(tmp_path, "0.25 * (str(ground_truth) in solution_str)")
    score = own_score(spec, "digits", parse_response(RIGHT), 8, None)
    assert score == {"score": 0.25, "acc": 0.25, "format": 1.0, "fault": ""}


def test_entries_of_a_dictionary_are_kept(tmp_path):
    spec = written(tmp_path, "{'score': 2, 'acc': True, 'style': 'short'}")
    score = own_score(spec, "digits", parse_response("8"), 8, None)
    assert score["score"] == 2.0
    assert score["acc"] == 1.0
    assert score["style"] == "short"
    assert score["fault"] == "block is missing"


def test_stage_rlvr_calls_it_and_logs_its_entries(tmp_path):
    spec = written(tmp_path, "{'score': 0.5, 'words': len(solution_str.split())}")
    config, prism = compose_run(["stage=rlvr", f"prism.reward.function={spec}"])
    assert prism.reward.function == spec
    options = dict(config.reward.custom_reward_function.reward_kwargs)
    score = asyncio.run(compute_judged_score("digits", RIGHT, "8", None, **options))
    metrics = reward_metrics([score, score])
    assert (metrics["reward/score"], metrics["reward/words"]) == (0.5, 9.0)
    assert metrics["reward/fault/missing"] == 0.0


def test_stage_eval_grades_with_it(tmp_path):
    spec = written(tmp_path, "{'score': 0.5, 'acc': 1}")
    marks = grade_sample(Sample(RIGHT, 22, False), ROW, lambda response, row: {}, spec).marks
    assert (marks["accuracy"], marks["reward"], marks["length"]) == (True, 0.5, 22)


@pytest.mark.parametrize(
    ("body", "arguments", "message"),
    [
        ("1", "response", "is called with data_source, solution_str, ground_truth, extra_info by"),
        ("1 +", ARGUMENTS, "cannot be imported: SyntaxError"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_the_run(
    tmp_path, body, arguments, message
):
    with pytest.raises(UserError) as caught:
        load_reward(written(tmp_path, body, arguments))
    assert message in str(caught.value)


@pytest.mark.parametrize("body", ["'good'", "None", "{'acc': 1}", "{'score': 1, 'x': [1]}"])
def test_a_result_that_is_no_number_is_refused(tmp_path, body):
    with pytest.raises(UserError, match=r"prism\.reward\.function=.*own\.py:reward returned"):
        own_score(written(tmp_path, body), "digits", parse_response(RIGHT), 8, None)


def test_messages_name_the_setting_that_has_the_function(tmp_path):
    spec = written(tmp_path, "None")
    with pytest.raises(UserError, match=r"^reward=.*own\.py:reward returned score=None"):
        own_score(spec, "digits", parse_response(RIGHT), 8, None, key="reward")
    with pytest.raises(UserError, match=r"^reward=.*own\.py has no function 'other'"):
        load_reward(spec.replace(":reward", ":other"), key="reward")


@pytest.mark.parametrize(
    ("body", "entry"),
    [
        ("float('nan')", "score=nan"),
        ("{'score': float('inf')}", "score=inf"),
        ("{'score': 1, 'acc': float('nan')}", "acc=nan"),
        ("{'score': 1, 'words': -float('inf')}", "words=-inf"),
    ],
)
def test_a_number_that_is_not_finite_is_refused(tmp_path, body, entry):
    with pytest.raises(UserError, match=rf"returned {entry}; return a finite number"):
        own_score(written(tmp_path, body), "digits", parse_response(RIGHT), 8, None)


def test_missing_files_and_functions(tmp_path):
    spec = written(tmp_path, "1")
    with pytest.raises(UserError, match="has no function 'other'"):
        load_reward(spec.replace(":reward", ":other"))
    with pytest.raises(UserError, match=r"no file '/nowhere\.py'"):
        load_reward("/nowhere.py:reward")
    with pytest.raises(
        UserError, match=r"prism\.reward\.function: write path/to/file\.py:function"
    ):
        compose_run(["stage=rlvr", "prism.reward.function=own.py"])


def test_the_judge_reviews_the_built_in_grader_only(tmp_path):
    judge = ("prism.reward.judge.endpoint=http://localhost/v1", "prism.reward.judge.model=m")
    with pytest.raises(UserError, match=r"function and judge\.endpoint are both set"):
        compose_run(["stage=rlvr", f"prism.reward.function={written(tmp_path, '1')}", *judge])


def test_entries_that_differ_between_responses_are_refused():
    with pytest.raises(UserError, match="returned 'style' for some responses only"):
        reward_metrics([{"score": 1.0, "fault": ""}, {"score": 1.0, "fault": "", "style": "x"}])
