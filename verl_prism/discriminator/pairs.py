"""Which answers of teacher and policy form pairs in the warm-up.

Prompts are named by their number. Only counts per prompt stay in memory, not texts or images.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from verl_prism.discriminator.spans import Spans, scored_spans, tokenize_spans
from verl_prism.response import View, parse_response


@dataclass(frozen=True)
class PairIndex:
    """The prompts to train on and the held-out ones, with counts of their rollouts."""

    train: Sequence[int]  # numbers of prompts with a valid rollout
    heldout: Sequence[int]
    valid: np.ndarray  # valid[P] number of valid rollouts of each prompt
    teachers: np.ndarray  # teachers[P] digest of each teacher's spans
    rollouts: int
    invalid: int


@dataclass(frozen=True)
class PromptTexts:
    """What the index keeps of the texts of one prompt."""

    rollouts: int
    valid: int  # rollouts that can be scored
    teacher: int  # digest of the teacher's spans


def count_rollouts(
    teacher: str,
    rollouts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    limits: Mapping[View, int],
) -> PromptTexts:
    """Count the rollouts of a prompt. A span over its limit makes a rollout invalid."""
    valid = sum(spans is not None for spans in rollout_spans(rollouts, tokenizer, limits))
    return PromptTexts(len(rollouts), valid, _digest(teacher))


def index_pairs(prompts: Sequence[PromptTexts], heldout_fraction: float, seed: int) -> PairIndex:
    """Choose the held-out prompts at random.

    Each rollout forms a pair with the teacher's response to the same prompt. An invalid rollout
    forms no pair and is counted. Prompts without a valid rollout are left out.
    """
    valid = [prompt.valid for prompt in prompts]
    num_rollouts = sum(prompt.rollouts for prompt in prompts)
    usable = [prompt for prompt, count in enumerate(valid) if count]
    random.Random(seed).shuffle(usable)
    num_heldout = max(1, round(heldout_fraction * len(usable)))
    return PairIndex(
        train=sorted(usable[num_heldout:]),
        heldout=sorted(usable[:num_heldout]),
        valid=np.array(valid),
        teachers=np.array([prompt.teacher for prompt in prompts], dtype=np.uint64),
        rollouts=num_rollouts,
        invalid=num_rollouts - sum(valid),
    )


def teacher_spans(text: str, tokenizer: PreTrainedTokenizerBase) -> Spans:
    """Tokenize the teacher's response, which must be valid."""
    response = parse_response(text)
    assert response.valid, f"teacher responses are checked before the run starts: {response.fault}"
    return tokenize_spans(response, tokenizer)


def rollout_spans(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, limits: Mapping[View, int]
) -> list[Spans | None]:
    """Tokenize rollouts. An invalid one is None."""
    return [scored_spans(parse_response(text), tokenizer, limits)[1] for text in texts]


def mismatched_teachers(index: PairIndex, count: int, seed: int) -> dict[int, list[int | None]]:
    """Return `count` other training prompts for each one, whose teacher's answers it is shown.

    These are in the teacher's style but wrong for the picture, so the discriminator has to look at
    it. An answer that equals the prompt's own counts as invalid: it is None.
    """
    chooser = random.Random(seed)
    chosen: dict[int, list[int | None]] = {}
    for prompt in index.train:
        others = [chooser.choice(index.train) for _ in range(count)]
        own = index.teachers[prompt]
        chosen[prompt] = [None if index.teachers[other] == own else other for other in others]
    return chosen


def shuffled_batches(
    prompts: Sequence[int], pairs: Mapping[int, int], pairs_per_batch: int, seed: int
) -> Iterator[list[int]]:
    """Yield prompts with about `pairs_per_batch` pairs, forever; each epoch has a new order."""
    shuffler = random.Random(seed)
    batch: list[int] = []
    size = 0
    while True:
        for prompt in shuffler.sample(prompts, len(prompts)):
            batch.append(prompt)
            size += pairs[prompt]
            if size >= pairs_per_batch:
                yield batch
                batch = []
                size = 0


def _digest(teacher: str) -> int:
    """Return 64 bits that tell different spans from each other."""
    response = parse_response(teacher)
    assert response.valid, "teacher responses are checked before the run starts"
    spans = "\0".join(response.view_text(view) for view in View)
    return int.from_bytes(hashlib.sha256(spans.encode()).digest()[:8])
