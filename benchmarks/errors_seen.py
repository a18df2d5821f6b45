"""Which errors does a discriminator see? Trains one of each kind on rows of digits, and tests them.

    python examples/digits/data.py --out outputs/row/data --task row --digits 3 \\
        --kinds parity sum
    (train outputs/row/sft/policy on it, as examples/digits/study.py does)
    python benchmarks/errors_seen.py --data outputs/row/data --policy outputs/row/sft/policy

In training the teacher's texts are paired with careless demonstrations and with the teacher's texts
for other questions. The test pairs, on held-out scans, differ in one kind of error. A tie has no
part in the accuracy.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import AutoProcessor

from verl_prism.discriminator import (
    VIEWS,
    DiscriminatorStep,
    Group,
    LossSettings,
    Optimization,
    Ranks,
    Spans,
    StepSettings,
    load_discriminator,
    tokenize_spans,
    upcycle,
)
from verl_prism.response import parse_response
from verl_prism.stages.warmup_data import encode_row

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
from tasks import BiasedRow, Question

KINDS: dict[str, dict[str, Any]] = {
    "head": {"scoring": "head", "imitation": 0.0},
    "likelihood": {"scoring": "likelihood", "imitation": 0.0},
    "likelihood and imitation": {"scoring": "likelihood", "imitation": 0.1},
}
ERRORS = ("misread", "wrong_digit", "drop_carry", "wrong_step")
NO_ERRORS = dict.fromkeys(ERRORS, 0.0)
GROUPS, TESTED = 16, 200
BROAD, MISMATCHED = 2, 2  # negatives of a group


class Texts:
    """Groups of teachers' and careless texts for the questions of parquet files."""

    def __init__(self, policy: Path) -> None:
        self._processor = AutoProcessor.from_pretrained(policy)

    def spans(self, text: str) -> Spans:
        """Tokenize the views of a response."""
        return tokenize_spans(parse_response(text), self._processor.tokenizer)

    def group(self, row: dict[str, Any], others: Sequence[str]) -> Group:
        """Return the teacher's text and others; one that equals the teacher's is left out."""
        teacher = row["teacher_response"]
        students = [None if other == teacher else self.spans(other) for other in others]
        return Group(encode_row(self._processor, row), self.spans(teacher), students)


def careless(row: dict[str, Any], chances: dict[str, float], rng: random.Random) -> str:
    """Return a demonstration with errors of these chances."""
    asked = row["extra_info"]
    question = Question(asked["kind"], tuple(asked["digits"]))
    return BiasedRow(**chances).broad(question, rng)


def train(
    kind: str, arguments: argparse.Namespace, rows: list[dict[str, Any]], texts: Texts
) -> DiscriminatorStep:
    """Return the step of a trained discriminator."""
    settings = KINDS[kind]
    folder = Path(tempfile.mkdtemp())
    upcycle(arguments.policy, folder, scoring=settings["scoring"])
    model = load_discriminator(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)

    def update() -> float:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        return norm

    loss = LossSettings(imitation_coef=settings["imitation"])
    step = DiscriminatorStep(
        model,
        StepSettings(micro_batch_tokens=16384, loss=loss),
        Optimization(update, optimizer.zero_grad),
        Ranks("cpu"),
        folder,
    )
    rng = random.Random(arguments.seed)
    drift = vars(BiasedRow())
    for _ in range(arguments.steps):
        groups = []
        for row in rng.sample(rows, GROUPS):
            others = [careless(row, drift, rng) for _ in range(BROAD)]
            others += [other["teacher_response"] for other in rng.sample(rows, MISMATCHED)]
            groups.append(texts.group(row, others))
        step(groups)
    return step


def test(step: DiscriminatorStep, rows: list[dict[str, Any]], texts: Texts) -> dict[str, Any]:
    """Return the accuracy per kind of error and view; None if that error leaves the view right."""
    found: dict[str, Any] = {}
    for error in ERRORS:
        rng = random.Random(0)
        chances = NO_ERRORS | {error: 1.0}
        groups = [texts.group(row, [careless(row, chances, rng)]) for row in rows[:TESTED]]
        teacher, student = step.score(groups).pairs()
        found[error] = {}
        for view, ahead in zip(VIEWS, teacher - student, strict=True):
            different = ahead[ahead != 0]
            accuracy = (different > 0).float().mean().item() if len(different) else None
            found[error][view.value] = accuracy
    return found


def main() -> None:
    """Print a line of JSON per kind of discriminator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that data.py wrote")
    parser.add_argument("--policy", type=Path, required=True, help="policy after SFT")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train_rows = pq.read_table(arguments.data / "train.parquet").to_pylist()
    heldout_rows = pq.read_table(arguments.data / "heldout.parquet").to_pylist()
    texts = Texts(arguments.policy)
    for kind in KINDS:
        torch.manual_seed(arguments.seed)
        step = train(kind, arguments, train_rows, texts)
        print(json.dumps({"discriminator": kind, **test(step, heldout_rows, texts)}), flush=True)


if __name__ == "__main__":
    main()
