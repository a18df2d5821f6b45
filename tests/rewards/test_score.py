import subprocess
import sys
import time

import numpy as np
import pytest

from verl_prism.errors import UserError
from verl_prism.response import FormatFault, parse_response
from verl_prism.rewards.grader import math_verify_pool
from verl_prism.rewards.score import compute_score, score_response

RIGHT = "<caption> A 3 and a 5. </caption><think> 3 + 5 = 8 </think><answer> 8 </answer>"


def test_a_right_answer_in_a_valid_format_gets_the_full_score():
    assert compute_score("digits", RIGHT, "8") == {
        "score": 1.0,
        "acc": 1.0,
        "format": 1.0,
        "fault": "",
    }


def test_a_wrong_answer_keeps_the_format_reward():
    assert compute_score("digits", RIGHT, "9") == {
        "score": 0.2,
        "acc": 0.0,
        "format": 1.0,
        "fault": "",
    }


def test_the_score_uses_the_weights():
    assert (
        compute_score("digits", RIGHT, "8", accuracy_weight=2.0, format_weight=0.5)["score"] == 2.5
    )


@pytest.mark.parametrize(
    "response", ["", "8", "<answer>8</answer>", RIGHT + "and more", RIGHT + RIGHT]
)
def test_an_invalid_format_gets_zero_and_the_fault(response):
    result = compute_score("digits", response, "8")
    assert (result["score"], result["acc"], result["format"]) == (0.0, 0.0, 0.0)
    assert result["fault"] in set(FormatFault)


def test_the_start_of_math_verify_does_not_count_against_the_first_deadline(monkeypatch):
    def slow_worker():
        time.sleep(2)  # longer than a verdict may take
        return worker()

    worker = math_verify_pool._Worker
    monkeypatch.setattr(math_verify_pool, "_Worker", slow_worker)
    monkeypatch.setattr(math_verify_pool, "_pool", math_verify_pool._Pool())
    assert compute_score("math", RIGHT.replace("> 8 <", "> xy = 1 <"), "y = 1/x")["acc"] == 1.0
    math_verify_pool._pool.close()


def test_equivalent_answers_come_from_extra_info():
    assert (
        compute_score("digits", RIGHT, "a zebra", {"index": 0, "equivalent_answers": ["8"]})["acc"]
        == 1.0
    )
    assert (
        compute_score("digits", RIGHT, "a zebra", {"index": 0, "equivalent_answers": None})["acc"]
        == 0.0
    )


def test_equivalent_answers_must_be_a_list():
    with pytest.raises(
        UserError, match=r"equivalent_answers='0\.5' is a string; it should be a list"
    ):
        compute_score("digits", RIGHT, "a zebra", {"equivalent_answers": "0.5"})


@pytest.mark.parametrize(
    ("gold", "equivalents", "message"),
    [
        (np.int64(8), None, r"index=3: gold answer .*8.* is of type int64; write reward_model"),
        ("8", ["eight", None], "index=3: gold answer None is of type NoneType"),
    ],
)
def test_a_gold_answer_that_is_no_string_is_refused_with_its_row(gold, equivalents, message):
    with pytest.raises(UserError, match=message):
        compute_score("digits", RIGHT, gold, {"index": 3, "equivalent_answers": equivalents})


def test_arguments_that_verl_adds_are_ignored():
    extra = {"num_turns": 2, "rollout_reward_scores": {}}
    result = compute_score(
        "digits", RIGHT, "8", extra, reward_router_address="x", reward_model_tokenizer=None
    )
    assert result["score"] == 1.0
    assert type(result["fault"]) is str


@pytest.mark.parametrize("text", [RIGHT, "8"])
def test_a_parsed_response_gets_the_same_score(text):
    extra_info = {"equivalent_answers": ["eight"]}
    assert score_response(parse_response(text), "8", extra_info) == compute_score(
        "digits", text, "8", extra_info
    )


def test_the_package_loads_neither_torch_nor_verl_nor_ray():
    code = """
import sys
from verl_prism.rewards import compute_score, grade, parse_response
assert not {"torch", "verl", "ray", "pydantic", "sympy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
