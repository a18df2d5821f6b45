"""The paper's structural proxies of alignment, as distances between distributions.

The paper compares how many items the captions have, and how many steps the reasoning has. Here the
lengths of both views are added, and the distributions are compared by the Jensen-Shannon distance:
0 for equal distributions, 1 for disjoint ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, log, log2

import numpy as np
from scipy.special import rel_entr

from verl_prism.measures.bootstrap import question_weights, tails
from verl_prism.measures.text import count_items, count_steps, words
from verl_prism.report.intervals import UNDEFINED, Interval
from verl_prism.response import Response

LENGTH_BINS = 4  # per doubling: a bin's lengths differ by about 19 % at most

Number = int | None  # of one response; None if the response is invalid


def caption_items(response: Response) -> int:
    """Return the number of items of the caption."""
    return count_items(response.caption)


def reasoning_steps(response: Response) -> int:
    """Return the number of steps of the think block."""
    return count_steps(response.think)


def caption_length(response: Response) -> int:
    """Return the bin of the number of words of the caption."""
    return length_bin(len(words(response.caption)))


def reasoning_length(response: Response) -> int:
    """Return the bin of the number of words of the think and answer blocks."""
    return length_bin(len(words(response.think)) + len(words(response.answer)))


def length_bin(count: int) -> int:
    """Return the bin of a count of words. Up to 7, each count has a bin of its own."""
    return floor(LENGTH_BINS * log2(count)) if count else -1


PROXIES: dict[str, Callable[[Response], int]] = {
    "caption_items": caption_items,
    "reasoning_steps": reasoning_steps,
    "caption_length": caption_length,
    "reasoning_length": reasoning_length,
}


@dataclass(frozen=True)
class Floor:
    """The distance between two samples of one distribution: its mean, and what 97.5 % are below.

    Both are None without samples.
    """

    mean: float | None
    high: float | None


def js_distance(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon distance (base 2) [...] of histograms p[..., B] and q[..., B]."""
    p = p / p.sum(axis=-1, keepdims=True)
    q = q / q.sum(axis=-1, keepdims=True)
    mixture = (p + q) / 2
    divergence = (rel_entr(p, mixture) + rel_entr(q, mixture)).sum(axis=-1) / (2 * log(2))
    return np.sqrt(np.clip(divergence, 0.0, 1.0))  # rounding can leave [0, 1]


def distance(
    teacher: Sequence[Number], policy: Sequence[Sequence[Number]], resamples: int, seed: int
) -> Interval:
    """Return the distance between the teacher's and the policy's distribution of a proxy.

    teacher[Q], policy[Q][S]: the proxy of each response. Questions without a valid response of
    both sides are left out. Each question has the same weight on both sides.

    The interval has the width of the bootstrap over questions, and is moved to have the estimate
    at its mean: a resampled distance is too large, as resampling adds noise. The estimate itself
    is too large for the same reason; `noise_floor` tells by how much near 0.
    """
    pairs = _valid(teacher, policy)
    if len(pairs) < 2:
        return UNDEFINED
    histograms = _histograms(pairs)
    estimate = float(_distances(histograms.sum(axis=0)))
    chunks = question_weights(len(pairs), resamples, seed)
    resampled = np.concatenate([_distances(weights @ histograms) for weights in chunks])
    low, high = np.quantile(resampled, tails()) - resampled.mean() + estimate
    return Interval(
        mean=estimate,
        low=float(np.clip(low, 0.0, estimate)),
        high=float(np.clip(high, estimate, 1.0)),
        responses=sum(len(own) for _, own in pairs),
        questions=len(pairs),
    )


def noise_floor(teacher: Sequence[Number], resamples: int, seed: int) -> Floor:
    """Return the distance between two samples of the teacher's own distribution.

    teacher[Q]: the proxy of the teacher's responses. Both samples have as many responses as the
    teacher has valid ones, drawn from them with replacement. A policy that writes like the teacher
    is about this far from it. (Two halves of the responses would be farther apart: they are
    smaller than the samples that `distance` compares.)
    """
    numbers = [number for number in teacher if number is not None]
    if not numbers:
        return Floor(None, None)
    _, counts = np.unique(numbers, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(numbers), counts / len(numbers), size=(2, resamples))
    distances = js_distance(drawn[0], drawn[1])
    return Floor(float(distances.mean()), float(np.quantile(distances, tails()[1])))


def _valid(
    teacher: Sequence[Number], policy: Sequence[Sequence[Number]]
) -> list[tuple[int, list[int]]]:
    """Return the teacher's and the policy's valid numbers of each question that has both."""
    pairs = []
    for target, numbers in zip(teacher, policy, strict=True):
        own = [number for number in numbers if number is not None]
        if target is not None and own:
            pairs.append((target, own))
    return pairs


def _histograms(pairs: Sequence[tuple[int, Sequence[int]]]) -> np.ndarray:
    """Return [Q, 2 * B]: the shares of B bins, first the teacher's and then the policy's."""
    bins = sorted({number for target, own in pairs for number in (target, *own)})
    place = {number: index for index, number in enumerate(bins)}
    histograms = np.zeros((len(pairs), 2, len(bins)))
    for question, (target, own) in enumerate(pairs):
        histograms[question, 0, place[target]] = 1
        for number in own:
            histograms[question, 1, place[number]] += 1 / len(own)
    return histograms.reshape(len(pairs), -1)


def _distances(histograms: np.ndarray) -> np.ndarray:
    """Return [...], the distance between both halves of histograms[..., 2 * B]."""
    teacher, policy = np.split(histograms, 2, axis=-1)
    return js_distance(teacher, policy)
