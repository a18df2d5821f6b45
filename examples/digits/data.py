"""Build the data of the digits task: images of two handwritten digits, questions and responses.

    python examples/digits/data.py --out outputs/digits/data --seed 0

Writes three parquet files: sft (demonstrations), train (questions with the teacher's responses) and
heldout (questions on scans that are in neither of the other two). README.md explains how and why
the demonstrations drift from the teacher.
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
ENLARGE = 4  # a scan has 8x8 pixels, an image of two scans has 64x32
TRAIN_SCANS = 1200  # of 1,797

TEACHER_CAPTION = "Left a {a}, right a {b}."
TEACHER_THINK = "Add left and right: {a} + {b} = {sum}."
# The broad demonstrators mostly write like the teacher, sometimes with less detail.
BRIEF_CAPTIONS = ("A {a} and a {b}.", "Digits {a}, {b}.")
BRIEF_THINKS = ("{a} + {b} = {sum}.", "The sum is {sum}.")


@dataclass(frozen=True)
class Mixture:
    """The number of rows of each file, and the errors in the broad demonstrations.

    The last three are probabilities. The errors of a demonstration are drawn independently.

    wrong_digit: one of the two digits in the caption is replaced by a random other digit.
    wrong_sum: the sum of the named digits is one too high or one too low.
    brief: the caption has less detail than the teacher's; the same, drawn again, for the reasoning.
    """

    broad: int = 15000
    teacher: int = 1300
    train: int = 4096
    heldout: int = 600
    wrong_digit: float = 0.25
    wrong_sum: float = 0.40
    brief: float = 0.2


@dataclass(frozen=True)
class Question:
    """Two scans, left and right, the digits that they show, and their image."""

    scans: tuple[int, int]
    digits: tuple[int, int]
    png: bytes


def respond(caption: str, think: str, answer: int) -> str:
    """Return a response in the response format."""
    return f"<caption>{caption}</caption><think>{think}</think><answer>{answer}</answer>"


def teacher_response(digits: tuple[int, int]) -> str:
    """Return the teacher's response: always right, always in the same style."""
    a, b = digits
    caption = TEACHER_CAPTION.format(a=a, b=b)
    think = TEACHER_THINK.format(a=a, b=b, sum=a + b)
    return respond(caption, think, a + b)


def broad_response(digits: tuple[int, int], mixture: Mixture, rng: random.Random) -> str:
    """Return a demonstration that may name a wrong digit, and may add up what it named wrongly."""
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
    """Yield questions forever, each on a new ordered pair. `scans`: indices into load_digits()."""
    bunch = load_digits()
    rng = random.Random(seed)
    seen: set[tuple[int, int]] = set()
    while True:
        left, right = rng.sample(scans.tolist(), 2)
        if (left, right) in seen:
            continue
        seen.add((left, right))
        digits = int(bunch.target[left]), int(bunch.target[right])
        yield Question((left, right), digits, draw_image(bunch.images[left], bunch.images[right]))


def draw_image(left: np.ndarray, right: np.ndarray) -> bytes:
    """Return a PNG of two scans side by side, 64 pixels wide and 32 high, white on black.

    left[8, 8], right[8, 8]: brightness in [0, 16].
    """
    pixels = np.hstack([left, right]).repeat(ENLARGE, axis=0).repeat(ENLARGE, axis=1) * (255 / 16)
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def prompt_messages() -> list[dict[str, str]]:
    """Return the messages of a prompt. They are the same for every question."""
    return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": QUESTION}]


def facts(question: Question, index: int) -> dict[str, Any]:
    """Return the column `extra_info`."""
    return {"index": index, "digits": list(question.digits), "scans": list(question.scans)}


def demonstration_row(question: Question, index: int, response: str, source: str) -> dict[str, Any]:
    """Return a row of sft.parquet."""
    return {
        "messages": [*prompt_messages(), {"role": "assistant", "content": response}],
        "images": [{"bytes": question.png}],
        "extra_info": {**facts(question, index), "source": source},
    }


def question_row(question: Question, index: int) -> dict[str, Any]:
    """Return a row of train.parquet or heldout.parquet."""
    return {
        "prompt": prompt_messages(),
        "images": [{"bytes": question.png}],
        "data_source": "digits",
        "reward_model": {"style": "rule", "ground_truth": str(sum(question.digits))},
        "extra_info": facts(question, index),
        "teacher_response": teacher_response(question.digits),
    }


def build(mixture: Mixture, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each file, by its name. The same seed gives the same rows."""
    target = load_digits().target
    train_scans, heldout_scans = train_test_split(
        np.arange(len(target)), train_size=TRAIN_SCANS, stratify=target, random_state=seed
    )
    train = draw_questions(train_scans, seed)
    heldout = draw_questions(heldout_scans, seed)
    return {
        "train": [question_row(next(train), index) for index in range(mixture.train)],
        "heldout": [question_row(next(heldout), index) for index in range(mixture.heldout)],
        "sft": demonstrations(train, mixture, random.Random(seed)),
    }


def demonstrations(
    questions: Iterator[Question], mixture: Mixture, rng: random.Random
) -> list[dict[str, Any]]:
    """Return the rows of the broad and the teacher's demonstrations, shuffled."""
    sources = ["broad"] * mixture.broad + ["teacher"] * mixture.teacher
    rng.shuffle(sources)
    rows = []
    for index, source in enumerate(sources):
        question = next(questions)
        if source == "teacher":
            response = teacher_response(question.digits)
        else:
            response = broad_response(question.digits, mixture, rng)
        rows.append(demonstration_row(question, index, response, source))
    return rows


def main() -> None:
    """Write the parquet files."""
    parser = argparse.ArgumentParser(description="Build the parquet files of the digits task.")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write sft.parquet, train.parquet and heldout.parquet into",
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
