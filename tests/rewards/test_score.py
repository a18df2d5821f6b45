import time

import pytest

from verl_prism.errors import UserError
from verl_prism.response import FormatFault
from verl_prism.rewards.grader import math_verify_pool
from verl_prism.rewards.score import compute_score

RIGHT = "<caption> A 3 and a 5. </caption><think> 3 + 5 = 8 </think><answer> 8 </answer>"


def test_right_answer_in_valid_format():
    assert compute_score("digits", RIGHT, "8") == {
        "score": 1.0,
        "acc": 1.0,
        "format": 1.0,
        "fault": "",
    }


def test_wrong_answer_keeps_the_format_credit():
    assert compute_score("digits", RIGHT, "9") == {
        "score": 0.2,
        "acc": 0.0,
        "format": 1.0,
        "fault": "",
    }


def test_weights():
    assert (
        compute_score("digits", RIGHT, "8", accuracy_weight=2.0, format_weight=0.5)["score"] == 2.5
    )


@pytest.mark.parametrize(
    "response", ["", "8", "<answer>8</answer>", RIGHT + "and more", RIGHT + RIGHT]
)
def test_invalid_format_earns_nothing_and_says_why(response):
    result = compute_score("digits", response, "8")
    assert (result["score"], result["acc"], result["format"]) == (0.0, 0.0, 0.0)
    assert result["fault"] in set(FormatFault)


def test_the_first_formula_of_a_process_does_not_pay_for_the_start_of_math_verify(monkeypatch):
    def slow_worker():
        time.sleep(2)  # longer than a verdict may take
        return worker()

    worker = math_verify_pool._Worker
    monkeypatch.setattr(math_verify_pool, "_Worker", slow_worker)
    monkeypatch.setattr(math_verify_pool, "_pool", math_verify_pool._Pool())
    assert compute_score("math", RIGHT.replace("> 8 <", "> xy = 1 <"), "y = 1/x")["acc"] == 1.0
    math_verify_pool._pool.close()


def test_equivalent_answers_of_the_row():
    assert (
        compute_score("digits", RIGHT, "a zebra", {"index": 0, "equivalent_answers": ["8"]})["acc"]
        == 1.0
    )
    assert (
        compute_score("digits", RIGHT, "a zebra", {"index": 0, "equivalent_answers": None})["acc"]
        == 0.0
    )


def test_equivalent_answers_are_a_list():
    with pytest.raises(
        UserError, match=r"equivalent_answers='0\.5' is a string; it should be a list"
    ):
        compute_score("digits", RIGHT, "a zebra", {"equivalent_answers": "0.5"})


def test_what_verl_adds_to_the_call_is_ignored():
    extra = {"num_turns": 2, "rollout_reward_scores": {}}
    result = compute_score(
        "digits", RIGHT, "8", extra, reward_router_address="x", reward_model_tokenizer=None
    )
    assert result["score"] == 1.0
    assert type(result["fault"]) is str
