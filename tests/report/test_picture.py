import io
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from verl_prism.report.picture import blocks, choose, draw_examples, explain

RIGHT = "<caption>A 3 and a 5.</caption><think>3 + 5 = 8.</think><answer>8</answer>"
KINDS = {
    "repaired": [False, True],
    "broken": [True, False],
    "wrong": [False, False],
    "right": [True, True],
}


def test_half_of_the_examples_are_repaired_and_every_kind_is_shown():
    verdicts = [KINDS[kind] for kind in ["right", "repaired", "wrong", "broken"] * 5]
    chosen = choose(verdicts, 6)
    assert chosen == [1, 5, 9, 3, 2, 0]
    assert "5 of 20 questions turned right and 5 turned wrong" in explain(verdicts, chosen)


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=3), max_size=30), st.integers(1, 8))
def test_choose_returns_count_distinct_questions(verdicts, count):
    chosen = choose(verdicts, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(verdicts))


def test_blocks_of_a_response():
    assert blocks(RIGHT) == [
        ("caption", ["A 3 and a 5."]),
        ("think", ["3 + 5 = 8."]),
        ("answer", ["8"]),
    ]
    assert blocks("just 8\x00") == [("not in the format: block is missing", ["just 8"])]


@pytest.mark.parametrize("text", [RIGHT, "", "$x_$ ^ \\frac{", "<caption>" + "long " * 900])
def test_any_response_can_be_drawn(tmp_path, text):
    png = io.BytesIO()
    Image.new("L", (64, 32)).save(png, "PNG")
    row = {
        "images": [{"bytes": png.getvalue()}],
        "prompt": [{"role": "user", "content": "<image>\nHow much is $5?"}],
        "reward_model": {"ground_truth": "8"},
    }
    marks = {
        "accuracy": text == RIGHT,
        "perception": text == RIGHT,
        "format": text == RIGHT,
        "length": 3,
    }
    responses = [(text, marks)] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = [row, row | {"images": None}, row | {"images": []}]
        draw_examples(tmp_path / "x.png", rows, {"SFT": responses, "RL": responses})
    assert Image.open(tmp_path / "x.png").height > 300
