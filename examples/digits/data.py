"""Build the data of the digits example: images of handwritten digits, questions and responses.

    python examples/digits/data.py --out outputs/digits/data --seed 0
    python examples/digits/data.py --out FOLDER --task row --digits 3 --kinds parity
    python examples/digits/data.py --out FOLDER --task row --kinds sum parity --rl-kinds parity

Writes parquet files: sft (demonstrations), train (questions with the teacher's responses), rl (some
of the training questions, if --gold or --rl-kinds is given) and heldout (questions on scans that
are in none of the others). README.md explains how and why the demonstrations drift from the
teacher.
"""

import argparse
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tasks import BiasedRow, Kind, NoisyPair, Question, Task, draw_question

SYSTEM_PROMPT = "Reply with <caption>image</caption><think>steps</think><answer>{answer}</answer>."
ENLARGE = 4  # a scan has 8x8 pixels, an image of two scans has 64x32
TRAIN_SCANS = 1200  # of 1,797
TASKS: dict[str, Task] = {"pair": NoisyPair(), "row": BiasedRow()}


@dataclass(frozen=True)
class Plan:
    """The task, the kinds of questions, and the number of rows of each file.

    kinds: of sft and train, equally often. rl_kinds, heldout_kinds: of rl and heldout; None: all.
    gold: number of rows of rl; None: all of these kinds.
    """

    task: str = "pair"
    drift: Task = field(default_factory=NoisyPair)
    digits: int = 2
    kinds: tuple[Kind, ...] = ("sum",)
    rl_kinds: tuple[Kind, ...] | None = None
    heldout_kinds: tuple[Kind, ...] | None = None
    gold: int | None = None
    broad: int = 15000
    teacher: int = 1300
    train: int = 4096
    heldout: int = 600


@dataclass(frozen=True)
class Example:
    """Scans from left to right, their image, and a question about them."""

    scans: tuple[int, ...]
    png: bytes
    question: Question


def draw_examples(
    scans: np.ndarray, plan: Plan, kinds: Sequence[Kind], seed: int
) -> Iterator[Example]:
    """Yield examples forever, each on new scans. `scans`: indices into load_digits()."""
    bunch = load_digits()
    rng = random.Random(seed)
    asking = random.Random(seed)
    seen: set[tuple[int, ...]] = set()
    while True:
        chosen = tuple(rng.sample(scans.tolist(), plan.digits))
        if chosen in seen:
            continue
        seen.add(chosen)
        digits = tuple(int(bunch.target[scan]) for scan in chosen)
        question = draw_question(asking.choice(kinds), digits, asking)
        yield Example(chosen, draw_image([bunch.images[scan] for scan in chosen]), question)


def draw_image(scans: Sequence[np.ndarray]) -> bytes:
    """Return a PNG of scans side by side, each 32x32 pixels, white on black.

    scans[*][8, 8]: brightness in [0, 16].
    """
    pixels = np.hstack(scans).repeat(ENLARGE, axis=0).repeat(ENLARGE, axis=1) * (255 / 16)
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def prompt_messages(plan: Plan, question: Question) -> list[dict[str, str]]:
    """Return the messages of a prompt."""
    system = SYSTEM_PROMPT.format(answer="sum" if plan.kinds == ("sum",) else "answer")
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": f"<image>\n{question.text}"},
    ]


def facts(plan: Plan, example: Example, index: int) -> dict[str, Any]:
    """Return the column `extra_info`."""
    question = example.question
    return {
        "index": index,
        "task": plan.task,
        "kind": question.kind,
        "digits": list(question.digits),
        "options": " ".join(map(str, question.options)),
        "scans": list(example.scans),
    }


def demonstration_row(
    plan: Plan, example: Example, index: int, response: str, source: str
) -> dict[str, Any]:
    """Return a row of sft.parquet."""
    prompt = prompt_messages(plan, example.question)
    return {
        "messages": [*prompt, {"role": "assistant", "content": response}],
        "images": [{"bytes": example.png}],
        "extra_info": {**facts(plan, example, index), "source": source},
    }


def question_row(plan: Plan, example: Example, index: int) -> dict[str, Any]:
    """Return a row of train.parquet, rl.parquet or heldout.parquet.

    It is also a demonstration, for SFT on the teacher's responses.
    """
    prompt = prompt_messages(plan, example.question)
    response = plan.drift.teacher(example.question)
    return {
        "prompt": prompt,
        "messages": [*prompt, {"role": "assistant", "content": response}],
        "images": [{"bytes": example.png}],
        "data_source": "digits",
        "reward_model": {"style": "rule", "ground_truth": example.question.gold},
        "extra_info": facts(plan, example, index),
        "teacher_response": response,
    }


def build(plan: Plan, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each file, by its name. The same seed gives the same rows."""
    target = load_digits().target
    train_scans, heldout_scans = train_test_split(
        np.arange(len(target)), train_size=TRAIN_SCANS, stratify=target, random_state=seed
    )
    training = draw_examples(train_scans, plan, plan.kinds, seed)
    heldout = draw_examples(heldout_scans, plan, plan.heldout_kinds or plan.kinds, seed)
    train = [question_row(plan, next(training), index) for index in range(plan.train)]
    files = {
        "train": train,
        "heldout": [question_row(plan, next(heldout), index) for index in range(plan.heldout)],
        "sft": demonstrations(training, plan, random.Random(seed)),
    }
    if plan.gold is not None or plan.rl_kinds is not None:
        files["rl"] = rl_rows(plan, train)
    return files


def rl_rows(plan: Plan, train: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the training questions for RL.

    Raises:
        SystemExit: there are fewer than asked for.
    """
    kinds = plan.rl_kinds or plan.kinds
    rows = [row for row in train if row["extra_info"]["kind"] in kinds]
    if not rows or len(rows) < (plan.gold or 0):
        raise SystemExit(
            f"only {len(rows)} of {len(train)} training questions are of the kinds "
            f"{', '.join(kinds)}: lower --gold, or add the kinds to --kinds"
        )
    return rows[: plan.gold]


def demonstrations(
    examples: Iterator[Example], plan: Plan, rng: random.Random
) -> list[dict[str, Any]]:
    """Return the rows of the broad and the teacher's demonstrations, shuffled."""
    sources = ["broad"] * plan.broad + ["teacher"] * plan.teacher
    rng.shuffle(sources)
    rows = []
    for index, source in enumerate(sources):
        example = next(examples)
        if source == "teacher":
            response = plan.drift.teacher(example.question)
        else:
            response = plan.drift.broad(example.question, rng)
        rows.append(demonstration_row(plan, example, index, response, source))
    return rows


def parse_plan(arguments: argparse.Namespace) -> Plan:
    """Return the plan of the command line.

    Raises:
        SystemExit: the options do not fit together; with what to change.
    """
    if arguments.task == "pair" and (arguments.digits != 2 or arguments.kinds != ["sum"]):
        raise SystemExit("--task pair has two digits and the kind sum: use --task row")
    if arguments.digits < 2:
        raise SystemExit(f"--digits {arguments.digits}: at least two are needed")
    drift: Any = TASKS[arguments.task]
    return Plan(
        task=arguments.task,
        drift=replace(drift, **parse_drift(arguments.drift, drift)),
        digits=arguments.digits,
        kinds=tuple(arguments.kinds),
        rl_kinds=arguments.rl_kinds and tuple(arguments.rl_kinds),
        heldout_kinds=arguments.heldout_kinds and tuple(arguments.heldout_kinds),
        gold=arguments.gold,
    )


def parse_drift(options: Sequence[str], drift: Any) -> dict[str, float]:
    """Return the probabilities given as NAME=VALUE.

    Raises:
        SystemExit: an unknown name, or a value that is not a probability.
    """
    names = [each.name for each in fields(drift)]
    chosen = {}
    for option in options:
        name, _, text = option.partition("=")
        if name not in names:
            raise SystemExit(f"--drift {option}: write one of {', '.join(names)} as NAME=VALUE")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise SystemExit(f"--drift {option}: the value must be from 0 to 1")
        chosen[name] = value
    return chosen


def main() -> None:
    """Write the parquet files."""
    parser = argparse.ArgumentParser(description="Build the parquet files of the digits example.")
    add = parser.add_argument
    kinds = get_args(Kind)
    add("--out", type=Path, required=True, help="folder to write the files into")
    add("--seed", type=int, default=0)
    add("--task", choices=TASKS, default="pair", help="pair: noisy sums; row: biased steps")
    add("--digits", type=int, default=2, help="digits in an image")
    add("--kinds", nargs="+", choices=kinds, default=["sum"], help="kinds of questions")
    add("--rl-kinds", nargs="+", choices=kinds, help="kinds of questions in rl.parquet")
    add("--heldout-kinds", nargs="+", choices=kinds, help="kinds of questions in heldout.parquet")
    add("--gold", type=int, help="number of questions in rl.parquet")
    add("--drift", nargs="+", default=[], metavar="NAME=VALUE", help="a probability of an error")
    arguments = parser.parse_args()
    plan = parse_plan(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, rows in build(plan, arguments.seed).items():
        path = arguments.out / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
