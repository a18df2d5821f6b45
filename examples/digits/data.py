"""Build the digits task: pictures of two handwritten digits, questions for their sum, demonstrations, teacher texts.

    python examples/digits/data.py --out outputs/digits/data --seed 0

writes three parquet files: sft (demonstrations), train (questions with a teacher's response) and heldout (questions on
scans that stand in neither of the other two). README.md says how the demonstrations drift from the teacher and why.
"""

import argparse
import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SYSTEM_PROMPT = "Reply with <caption>image</caption><think>steps</think><answer>sum</answer>."
QUESTION = "<image>\nWhat is the sum?"
ENLARGE = 4  # a scan is 8x8 pixels, a picture of two is 64x32
TRAIN_SCANS = 1200  # of 1,797

TEACHER_CAPTION = "Left a {a}, right a {b}."
TEACHER_THINK = "Add left and right: {a} + {b} = {sum}."
# The broad demonstrators mostly write like the teacher, and sometimes with less detail.
BRIEF_CAPTIONS = ("A {a} and a {b}.", "Digits {a}, {b}.")
BRIEF_THINKS = ("{a} + {b} = {sum}.", "The sum is {sum}.")


@dataclass(frozen=True)
class Mixture:
    """How many rows each file has, and how the broad demonstrations go wrong (shares in [0, 1])."""

    broad: int = 15000
    teacher: int = 1300
    train: int = 4096
    heldout: int = 600
    wrong_digit: float = (
        0.25  # of broad captions: one of the two digits becomes another, each equally likely
    )
    brief: float = 0.2  # of broad captions, and of broad reasonings: less detail than the teacher's
    wrong_sum: float = (
        0.40  # of broad reasonings: the sum of the digits named is one too high or one too low
    )


@dataclass(frozen=True)
class Question:
    """A pair of scans, left and right, with the digits that they show."""

    scans: tuple[int, int]
    digits: tuple[int, int]
    png: bytes


def respond(caption: str, think: str, answer: int) -> str:
    return f"<caption>{caption}</caption><think>{think}</think><answer>{answer}</answer>"


def teacher_response(digits: tuple[int, int]) -> str:
    a, b = digits
    return respond(
        TEACHER_CAPTION.format(a=a, b=b), TEACHER_THINK.format(a=a, b=b, sum=a + b), a + b
    )


def broad_response(digits: tuple[int, int], mixture: Mixture, rng: random.Random) -> str:
    """A demonstration that may name a wrong digit, and may add up wrongly what it named."""
    named = list(digits)
    if rng.random() < mixture.wrong_digit:
        place = rng.randrange(2)
        named[place] = rng.choice([digit for digit in range(10) if digit != named[place]])
    a, b = named
    total = a + b
    if rng.random() < mixture.wrong_sum:
        total += rng.choice((-1, 1)) if total > 0 else 1
    caption = rng.choice(BRIEF_CAPTIONS) if rng.random() < mixture.brief else TEACHER_CAPTION
    think = rng.choice(BRIEF_THINKS) if rng.random() < mixture.brief else TEACHER_THINK
    return respond(caption.format(a=a, b=b), think.format(a=a, b=b, sum=total), total)


def draw_questions(scans: np.ndarray, seed: int) -> Iterator[Question]:
    """Endless questions, each on a new ordered pair of scans. `scans`: indices into load_digits()."""
    bunch, rng = load_digits(), random.Random(seed)
    seen: set[tuple[int, int]] = set()
    while True:
        left, right = rng.sample(scans.tolist(), 2)
        if (left, right) in seen:
            continue
        seen.add((left, right))
        digits = int(bunch.target[left]), int(bunch.target[right])
        yield Question((left, right), digits, picture(bunch.images[left], bunch.images[right]))


def picture(left: np.ndarray, right: np.ndarray) -> bytes:
    """PNG of two scans `[8, 8]` (ink 0 to 16) side by side, bright ink on black, 64 wide and 32 high."""
    pixels = np.hstack([left, right]).repeat(ENLARGE, axis=0).repeat(ENLARGE, axis=1) * (255 / 16)
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def prompt_messages() -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": QUESTION}]


def facts(question: Question, index: int) -> dict[str, Any]:
    return {"index": index, "digits": list(question.digits), "scans": list(question.scans)}


def demonstration_row(question: Question, index: int, response: str, source: str) -> dict[str, Any]:
    return {
        "messages": [*prompt_messages(), {"role": "assistant", "content": response}],
        "images": [{"bytes": question.png}],
        "extra_info": {**facts(question, index), "source": source},
    }


def question_row(question: Question, index: int) -> dict[str, Any]:
    return {
        "prompt": prompt_messages(),
        "images": [{"bytes": question.png}],
        "data_source": "digits",
        "reward_model": {"style": "rule", "ground_truth": str(sum(question.digits))},
        "extra_info": facts(question, index),
        "teacher_response": teacher_response(question.digits),
    }


def build(mixture: Mixture, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Rows of each file by its name, the same for the same seed."""
    target = load_digits().target
    train_scans, heldout_scans = train_test_split(
        np.arange(len(target)), train_size=TRAIN_SCANS, stratify=target, random_state=seed
    )
    train, heldout = draw_questions(train_scans, seed), draw_questions(heldout_scans, seed)
    return {
        "train": [question_row(next(train), index) for index in range(mixture.train)],
        "heldout": [question_row(next(heldout), index) for index in range(mixture.heldout)],
        "sft": demonstrations(train, mixture, random.Random(seed)),
    }


def demonstrations(
    questions: Iterator[Question], mixture: Mixture, rng: random.Random
) -> list[dict[str, Any]]:
    """Broad and teacher's demonstrations, shuffled."""
    sources = ["broad"] * mixture.broad + ["teacher"] * mixture.teacher
    rng.shuffle(sources)
    rows = []
    for index, source in enumerate(sources):
        question, taught = next(questions), source == "teacher"
        response = (
            teacher_response(question.digits)
            if taught
            else broad_response(question.digits, mixture, rng)
        )
        rows.append(demonstration_row(question, index, response, source))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the parquet files of the digits task.")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write sft, train and heldout .parquet into",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, rows in build(Mixture(), arguments.seed).items():
        path = arguments.out / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
