import time

import pytest

from verl_prism.measures.text import count_items, count_steps, tokens, words


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("A 3 and a 5.", 1),
        ("- a photo\n- two cats\n  - one is black\n* text: 3.5", 4),
        ("Objects:\n1. a cup\n2) a spoon", 2),
        ("A cup of 3.5 liters. It is blue! Is it?", 3),
        ("first line\nsecond line\n\nthird", 3),
        ("**Style**: a photo", 1),
        ("一只猫。一只狗。", 2),
        ("+", 1),
    ],
)
def test_items(text, items):
    assert count_items(text) == items


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("Step 1: add.\n- 3 + 5\n- is 8\n**Step 2**: done.", 2),
        ("### Step 3", 1),
        ("1. add\n2. done", 2),
        ("Add them. The sum is 8.", 2),
        ("The next step 4 is in the text.", 1),
    ],
)
def test_steps(text, steps):
    assert count_steps(text) == steps


def test_words_and_tokens():
    assert words("Left a 7,\nright: 12.") == ["Left", "a", "7", "right", "12"]
    assert tokens("Left a 7,\n\n12.") == ["Left", "a", "7", ",", "\n\n", "12", "."]
    assert words("两只cats") == ["两", "只", "cats"]


@pytest.mark.parametrize("unit", [" ", "\n", "#", "step ", "- ", "1. ", "\n ", "。", "a"])
def test_time_is_linear_in_the_length(unit):
    text = unit * 200_000
    start = time.process_time()
    for function in (count_steps, count_items, tokens):
        function(text)
    assert time.process_time() - start < 5
