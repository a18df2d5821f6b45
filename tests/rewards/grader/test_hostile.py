r"""Strings that make graders slow or raise: towers, nests, megabytes, hard cases for sympy."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from verl_prism.rewards.grader import math_verify_pool
from verl_prism.rewards.grader.grading import grade

DEADLINE = 2.0  # seconds

HOSTILE = {
    "tower of powers": "9^9^9^9^9",
    "tower in TeX": "9^{9^{9^{9^{9}}}}",
    "tower in Python": "9**9**9**9",
    "long tower": "^".join(["9"] * 900),
    "huge power": "2^{99999999999}",
    "huge negative power": "2^{-99999999999}",
    "huge power of a variable": "(x+y+z)^{5000}",
    "expanding product": "(x+1)^{99}(y+1)^{99}(z+1)^{99}",
    "factorial": "99999999!",
    "factorials": "9!!!!!!!!!!",
    "gamma": r"\Gamma(10^{10^{10}})",
    "exponent": "1e999999999",
    "exponents": "1e1999" + "*1e1999" * 200,
    "megabyte of digits": "7" * 1_000_000,
    "two megabytes of digits": "1" * 2_000_000,
    "digits": "7" * 1900,
    "fraction of digits": r"\frac{" + "7" * 900 + "}{" + "3" * 900 + "}",
    "sum of fractions": "+".join(f"1/{n}" for n in range(1001, 1330)),
    "thousands separators": "1" + ",000" * 480,
    "commas": "," * 1990,
    "100,000 nested braces": "{" * 100_000 + "}" * 100_000,
    "nested braces": "{" * 990 + "1" + "}" * 990,
    "nested parentheses": "(" * 990 + "1" + ")" * 990,
    "open parentheses": "(" * 1990,
    "nested points": "(1," * 600 + "1" + ")" * 100,
    "nested lists": "([{1," * 200 + "1" + "}])" * 200,
    "nested fractions": r"\frac{1}{" * 200 + "2" + "}" * 200,
    "fractions without arguments": r"\frac" * 390,
    "nested roots": r"\sqrt{" * 280 + "2" + "}" * 280,
    "roots": "√" * 1990,
    "functions": r"\sin" * 480 + "x",
    "signs": "-" * 1990 + "1",
    "plus and minus": "±" * 1000 + "1",
    "dollars": "$" * 1999,
    "backslashes": "\\" * 1999,
    "boxes": r"\boxed{" * 280,
    "boxes in boxes": r"\boxed{" * 200 + "8" + "}" * 200,
    "styles": r"\text{" * 300 + "8" + "}" * 300,
    "list of lists": "; ".join(["1, 2, 3, 4, 5 or 6"] * 100),
    "list": ", ".join(map(str, range(300))),
    "list of formulas": ", ".join(f"x^2={n}y!" for n in range(90)),
    "set of sets": "{" + ", ".join("{" + ", ".join("abcdefgh") + "}" for _ in range(60)) + "}",
    "answers": "the answer is A or " * 100,
    "answer to": "answer to " * 200,
    "letters before a word": "A" + ", B" * 600 + " words",
    "letters that are not chosen": "A, not " + "B, " * 600,
    "ranges": "5 cm-" * 380 + "5 cm",
    "numbered names": "H2O" * 600,
    "out of": "5 out of " * 200,
    "a long label": "a" * 1900 + "! = 5",
    "a Chinese sentence": "角" * 60 + "\uff1a x = 5",
    "indices": "R1 = 5, R2 = " * 140,
    "doubts": "The answer is A" + " " * 900 + "or " * 300,
    "the": "the " * 490,
    "spaces": " " * 1000 + "8" + " " * 990,
    "scales": "9" + " million" * 240,
    "number words": "twenty " * 280,
    "units": "5 " + "kg m " * 390,
    "unit powers": "5 m" + "^4" * 900,
    "hours and minutes": "1 h " * 490,
    "combining characters": "a" + "\u0315\u0300\u05ae\u0301" * 490,
    "unpaired surrogates": "\ud800\udfff" * 100,
    "null characters": "\x00" * 1000,
    "right to left": "\u202e8\u202c" * 100,
    "code": "__import__('os').system('sleep 10')",
    "lambda": "(lambda: exec('while 1: pass'))()",
    "unsolvable": "x^{7}+x^{5}-3x+11=sin(x)+e^{x}",
    "integral": r"\int_0^{\infty} \frac{\sin(x^3) e^{x^2}}{\ln(x)+x^x} dx",
    "sum": r"\sum_{n=1}^{10^{9}} \frac{1}{n^{n}}",
    "product": r"\prod_{n=1}^{99999999} (1+\frac{x}{n})",
    "limit": r"\lim_{x \to 0} \frac{\sin(\tan x) - \tan(\sin x)}{x^7}",
    "matrix": r"\begin{pmatrix}" + r"\\".join([" & ".join("abcdefgh")] * 8) + r"\end{pmatrix}^{50}",
    "trigonometry": r"\sin(\cos(\sin(\cos(\sin(\cos(x)))))) = x!",
    "equation of degree 9": "x^9 - 3x^7 + 2x^5 - x^3 + 17x - y^4 = 23",
}


@pytest.fixture(scope="module", autouse=True)
def math_process():
    math_verify_pool.start()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_strings_end_by_the_deadline(name):
    text = HOSTILE[name]
    for answer, gold in [
        (text, "8"),
        ("8", text),
        (text, text + "1"),
        (text, r"x^2+\int y!"),
        (r"x^2+\int y!", text),
    ]:
        start = time.perf_counter()
        assert grade(answer, gold) in (True, False)
        assert time.perf_counter() - start < DEADLINE
    assert grade(text, text) == any(
        character.isprintable() and character != " " for character in text
    )


def test_hostile_strings_end_by_the_deadline_in_threads():
    def seconds(text):
        start = time.perf_counter()
        grade(text, r"x^2+\int y!")
        return time.perf_counter() - start

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(seconds, HOSTILE.values())) < DEADLINE


def test_many_equivalents_share_one_deadline():
    start = time.perf_counter()
    assert not grade(HOSTILE["expanding product"], "8", [rf"x^{n}+\int y!" for n in range(2, 20)])
    assert time.perf_counter() - start < DEADLINE
