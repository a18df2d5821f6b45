"""Offline sampling of a policy on all devices, for the evaluation and the warm-up.

Rows go to the engines in chunks. An engine always has work for about two chunks, so that a long
response does not leave it idle, and a slow engine does not delay the others.

In a reproducible run a response depends only on the policy, the settings and the row: chunks have a
fixed composition, and an engine works on one chunk at a time.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from verl_prism.rollout.sampling import Finished, NumberedRow, Row, SamplingJob

if TYPE_CHECKING:
    from verl_prism.rollout.engines import Engines


def sample_rows(
    job: SamplingJob, rows: Sequence[Row], numbers: Sequence[int]
) -> Iterator[list[Finished]]:
    """Yield the responses to rows[number] for each of `numbers`, ascending, as they are finished.

    Rows are read when an engine needs them. In a reproducible run other rows of the same chunks are
    sampled and yielded too.
    """
    from verl_prism.rollout.engines import engine_count, open_engines  # imports torch and Ray

    engines = engine_count(job.hardware)
    size = chunk_rows(job, engines, len(numbers))
    chunks = whole_chunks(numbers, size, len(rows)) if job.reproducible else split(numbers, size)
    read = ([(number, rows[number]) for number in chunk] for chunk in chunks)
    keep = 0 if job.reproducible else size
    with open_engines(job) as pool:
        yield from hand_out(pool, read, keep)


def chunk_rows(job: SamplingJob, engines: int, rows: int) -> int:
    """Return the number of rows in a chunk.

    A chunk fills an engine's batch. If there are too few rows for that, each engine gets two
    chunks, except in a reproducible run, whose chunks must not depend on the number of engines.
    """
    full = math.ceil(job.hardware.max_num_seqs / job.responses_per_row)
    return full if job.reproducible else max(1, min(full, math.ceil(rows / (2 * engines))))


def split(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield slices of at most `size` numbers."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


def whole_chunks(numbers: Sequence[int], size: int, rows: int) -> Iterator[Sequence[int]]:
    """Yield each chunk [k·size, (k + 1)·size) of all `rows` rows that contains one of `numbers`."""
    for chunk in sorted({number // size for number in numbers}):
        yield range(chunk * size, min((chunk + 1) * size, rows))


def hand_out(
    engines: "Engines", chunks: Iterable[list[NumberedRow]], keep: int
) -> Iterator[list[Finished]]:
    """Give chunks to engines as they finish rows, and yield the finished rows.

    keep: an engine gets its next chunk when it has at most this many unfinished rows.
    """
    remaining = iter(chunks)
    unfinished = dict.fromkeys(range(engines.count), 0)
    exhausted = False

    def order(engine: int) -> None:
        nonlocal exhausted
        new: list[NumberedRow] = []
        if unfinished[engine] <= keep and not exhausted:
            new = next(remaining, [])
            exhausted = not new
        unfinished[engine] += len(new)
        if unfinished[engine]:
            engines.order(engine, new, 0 if exhausted else keep)

    for engine in unfinished:
        order(engine)
    while any(unfinished.values()):
        engine, finished = engines.report()
        unfinished[engine] -= len(finished)
        if finished:
            yield finished
        order(engine)
