"""What is sampled and what comes back. This module imports neither torch nor vLLM."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_prism.config import Hardware, Image

Row = Mapping[str, Any]
NumberedRow = tuple[int, Row]


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled: `n` per row; temperature 0 is greedy."""

    n: int
    temperature: float
    top_p: float
    max_tokens: int  # per response


@dataclass(frozen=True)
class Sample:
    """A sampled response: its text without special tokens, and its length with the end token."""

    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class SamplingJob:
    """What to sample: the responses of all `samplings` to each row."""

    policy: Path
    samplings: tuple[Sampling, ...]
    hardware: Hardware
    image: Image  # limits of the images' sizes
    seed: int
    reproducible: bool
    max_model_len: int  # tokens of a prompt and a response together

    @property
    def responses_per_row(self) -> int:
        """Number of responses to each row."""
        return sum(sampling.n for sampling in self.samplings)


Finished = tuple[
    int, list[Sample]
]  # a row's number, and its responses in the order of the samplings


def request_seed(*position: int) -> int:
    """Return a seed that depends on all numbers of a position, such as (run's seed, row)."""
    return int(np.random.SeedSequence(position).generate_state(1)[0])
