"""The bootstrap over questions: whole questions are drawn again, with all their responses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from verl_prism.report.intervals import CONFIDENCE

CHUNK_NUMBERS = 2**20  # weights in memory at a time

Values = Sequence[Sequence[float]]  # [Q][*]: the values of each question's responses


@dataclass(frozen=True)
class Difference:
    """A difference of two means, its interval [low, high], and the number of questions.

    All three numbers are None if a mean is undefined, or for fewer than two questions.
    """

    difference: float | None
    low: float | None
    high: float | None
    questions: int


def question_weights(questions: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield weights[r, Q]: how often each resample has drawn each question.

    The chunks have `resamples` rows together. Each row sums to Q.
    """
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_NUMBERS // max(1, questions))
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(questions, size=(rows, questions))
        cells = drawn + questions * np.arange(rows)[:, None]
        counts = np.bincount(cells.ravel(), minlength=rows * questions)
        yield counts.reshape(rows, questions).astype(np.float64)


def paired_differences(
    first: Mapping[str, Values], second: Mapping[str, Values], resamples: int, seed: int
) -> dict[str, Difference]:
    """Return second minus first for each mark that both have, with percentile intervals.

    Both are {mark: values[Q][*]} over the same questions. A mean is over all responses. Every
    resample draws the same questions for both policies and all marks, so what makes a question
    easy or hard for both cancels.
    """
    marks = [mark for mark in first if mark in second]
    if not marks:
        return {}
    sides = ([first[mark] for mark in marks], [second[mark] for mark in marks])
    before, after = (_sums_and_counts(side) for side in sides)
    questions = before.shape[1]
    if questions < 2:
        return {mark: Difference(None, None, None, questions) for mark in marks}
    columns = np.concatenate([before, after]).reshape(-1, questions).T  # [Q, 2 * 2 * M]
    totals = [weights @ columns for weights in question_weights(questions, resamples, seed)]
    resampled = _difference_of_means(np.concatenate(totals))
    estimates = _difference_of_means(columns.sum(axis=0))
    both = (before[1::2] > 0) & (after[1::2] > 0)
    return {
        mark: _difference(estimates[number], resampled[:, number], int(both[number].sum()))
        for number, mark in enumerate(marks)
    }


def _sums_and_counts(marks: Sequence[Values]) -> np.ndarray:
    """Return [2 * M, Q]: for each mark the sums of the questions' values, then their numbers."""
    rows = []
    for values in marks:
        rows.append([sum(given) for given in values])
        rows.append([len(given) for given in values])
    return np.array(rows, dtype=np.float64)


def _difference_of_means(totals: np.ndarray) -> np.ndarray:
    """Return [..., M] of totals[..., 2 * 2 * M]; NaN where a mean has no values."""
    pairs = totals.reshape(*totals.shape[:-1], 2, -1, 2)  # policy, mark, sum and count
    with np.errstate(invalid="ignore"):
        means = pairs[..., 0] / pairs[..., 1]
    return means[..., 1, :] - means[..., 0, :]


def _difference(estimate: float, resampled: np.ndarray, questions: int) -> Difference:
    defined = resampled[~np.isnan(resampled)]
    if np.isnan(estimate) or questions < 2 or not len(defined):
        return Difference(None, None, None, questions)
    low, high = np.quantile(defined, tails())
    return Difference(float(estimate), float(low), float(high), questions)


def tails() -> tuple[float, float]:
    """Return the two quantiles between which the interval lies."""
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
