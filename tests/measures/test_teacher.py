import json
import random

import pytest

from verl_prism.measures import teacher as teacher_module
from verl_prism.measures.teacher import TeacherComparison, proxy_numbers

INVALID = "<caption>A 3.</caption>"


def respond(caption: str, think: str = "It is a sum. The sum is 8.") -> str:
    return f"<caption>{caption}</caption><think>{think}</think><answer>8</answer>"


def teacher_text(rng: random.Random) -> str:
    return respond(f"- a {rng.randrange(10)} left\n- a {rng.randrange(10)} right")


def policy_text(rng: random.Random) -> str:
    return respond(f"It shows a {rng.randrange(10)} and a {rng.randrange(10)}.")


@pytest.fixture
def teacher() -> list[str]:
    rng = random.Random(0)
    return [teacher_text(rng) for _ in range(120)]


def test_a_policy_that_writes_other_captions_than_the_teacher(teacher):
    rng = random.Random(1)
    comparison = TeacherComparison(teacher, 100, 0)
    found = comparison.policy([[policy_text(rng), INVALID, policy_text(rng)] for _ in teacher])
    assert found["invalid"] == 120
    assert found["proxies"]["caption_items"]["mean"] == 1
    assert found["proxies"]["caption_items"]["responses"] == 240
    assert found["proxies"]["reasoning_steps"]["mean"] == 0
    assert found["probe"]["perception"]["accuracy"]["mean"] == 1
    assert found["probe"]["perception"]["accuracy"]["questions"] == 60
    assert found["probe"]["reasoning"]["accuracy"]["mean"] == 0.5
    shuffled = found["probe"]["perception"]["shuffled"]
    assert shuffled["low"] <= 0.5 <= shuffled["high"]


def test_a_policy_that_writes_like_the_teacher(teacher):
    rng = random.Random(1)
    comparison = TeacherComparison(teacher, 100, 0)
    found = comparison.policy([[teacher_text(rng)] for _ in teacher])
    baseline = comparison.baseline()
    accuracy = found["probe"]["perception"]["accuracy"]
    assert accuracy["low"] <= 0.5 <= accuracy["high"]
    control = baseline["probe"]["perception"]
    assert control["low"] <= 0.5 <= control["high"]
    assert control["questions"] == 30
    for name, floor in baseline["proxies"].items():
        assert found["proxies"][name]["mean"] <= floor["high"]


def test_teacher_responses_that_are_missing_or_invalid(teacher):
    teacher = [None, INVALID, INVALID, *teacher[3:]]
    comparison = TeacherComparison(teacher, 20, 0)
    baseline = comparison.baseline()
    assert (baseline["responses"], baseline["invalid"], baseline["missing"]) == (117, 2, 1)
    found = comparison.policy([[text or INVALID] for text in teacher])
    assert found["proxies"]["caption_items"]["questions"] == 117
    assert found["probe"]["perception"]["accuracy"]["mean"] == 0.5


@pytest.mark.parametrize("policy", [INVALID, respond("A 3.")])
@pytest.mark.parametrize("teacher", [INVALID, respond("A 3."), None])
@pytest.mark.parametrize("questions", [1, 2, 30])
@pytest.mark.filterwarnings("error")
def test_all_texts_are_equal_or_invalid(teacher, policy, questions):
    comparison = TeacherComparison([teacher] * questions, 20, 0)
    found = {"policy": comparison.policy([[policy] * 2] * questions), "all": comparison.baseline()}
    assert "NaN" not in json.dumps(found)
    accuracy = found["policy"]["probe"]["reasoning"]["accuracy"]["mean"]
    valid = teacher == policy == respond("A 3.")
    assert accuracy == (0.5 if valid and questions == 30 else None)


def test_the_probe_uses_a_limited_number_of_texts(teacher, monkeypatch):
    monkeypatch.setattr(teacher_module, "PROBE_QUESTIONS", 20)
    monkeypatch.setattr(teacher_module, "PROBE_RESPONSES", 2)
    rng = random.Random(1)
    comparison = TeacherComparison(teacher, 20, 0)
    found = comparison.policy([[policy_text(rng) for _ in range(5)] for _ in teacher])
    accuracy = found["probe"]["perception"]["accuracy"]
    assert (accuracy["questions"], accuracy["responses"]) == (10, 20)
    assert found["proxies"]["caption_items"]["responses"] == 600
    assert comparison.baseline()["probe"]["perception"]["questions"] == 10


def test_numbers_of_invalid_texts_are_none():
    numbers = proxy_numbers([[INVALID, respond("A 3. A 5.")], [None]])
    assert numbers["caption_items"] == [[None, 2], [None]]
