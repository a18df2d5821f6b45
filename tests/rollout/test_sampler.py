"""Handing rows out to engines, without vLLM: an engine is a list of rows that it finishes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_prism.compose import compose_run
from verl_prism.data.images import MODEL_LIMITS
from verl_prism.errors import UserError
from verl_prism.rollout.engines import engine_count
from verl_prism.rollout.sampler import chunk_rows, hand_out, split, whole_chunks
from verl_prism.rollout.sampling import Finished, NumberedRow, Sample, Sampling, SamplingJob


class FakeEngines:
    """Engines that take turns. Engine i finishes speeds[i] rows in each turn."""

    def __init__(self, speeds: Sequence[int]):
        self.count = len(speeds)
        self.speeds = speeds
        self.rows: list[list[int]] = [[] for _ in speeds]
        self.keep = [0] * len(speeds)
        self.waiting: list[int] = []
        self.given: list[list[list[int]]] = [[] for _ in speeds]  # the chunks of each engine
        self.most = [0] * len(speeds)

    def order(self, engine: int, new: Sequence[NumberedRow], keep: int) -> None:
        assert engine not in self.waiting, "one order at a time"
        if new:
            self.given[engine].append([number for number, _ in new])
        self.rows[engine] += [number for number, _ in new]
        self.most[engine] = max(self.most[engine], len(self.rows[engine]))
        self.keep[engine] = keep
        self.waiting.append(engine)

    def report(self) -> tuple[int, list[Finished]]:
        engine = self.waiting.pop(0)
        count = min(self.speeds[engine], len(self.rows[engine]) - self.keep[engine])
        done = [self.rows[engine].pop() for _ in range(max(count, 0))]
        return engine, [(number, [Sample(str(number), 1, False)]) for number in done]


def numbered(chunks) -> list[list[NumberedRow]]:
    return [[(number, {}) for number in chunk] for chunk in chunks]


@given(
    rows=st.integers(0, 60),
    size=st.integers(1, 9),
    speeds=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    overlap=st.booleans(),
)
def test_every_row_is_sampled_once_whatever_the_engines_do(rows, size, speeds, overlap):
    engines = FakeEngines(speeds)
    chunks = numbered(split(range(rows), size))
    keep = size if overlap else 0
    done = [number for part in hand_out(engines, chunks, keep) for number, _ in part]
    assert sorted(done) == list(range(rows))
    assert max(engines.most) <= size + keep


def test_a_slow_engine_gets_fewer_rows():
    engines = FakeEngines([1, 10])
    list(hand_out(engines, numbered(split(range(200), 5)), keep=5))
    slow, fast = (sum(map(len, chunks)) for chunks in engines.given)
    assert fast > 3 * slow


def test_an_engine_works_on_one_chunk_at_a_time_in_a_reproducible_run():
    engines = FakeEngines([2, 3, 7])
    list(hand_out(engines, numbered(whole_chunks(range(20), 6, 20)), keep=0))
    given_out = sorted(chunk for chunks in engines.given for chunk in chunks)
    assert given_out == [[*range(0, 6)], [*range(6, 12)], [*range(12, 18)], [18, 19]]
    assert max(engines.most) == 6


def test_a_resumed_reproducible_run_samples_the_same_chunks():
    assert [*map(list, whole_chunks([7, 8, 19], 6, 20))] == [[*range(6, 12)], [18, 19]]


@pytest.fixture
def job() -> SamplingJob:
    hardware = compose_run(["stage=eval", "prism.hardware.max_num_seqs=64"])[1].hardware
    samplings = (Sampling(1, 0.0, 1.0, 8), Sampling(4, 1.0, 1.0, 8))
    return SamplingJob(Path("policy"), samplings, hardware, MODEL_LIMITS, 0, False, 128)


def test_a_chunk_fills_a_batch_unless_there_are_too_few_rows(job):
    assert chunk_rows(job, engines=2, rows=10_000) == 13, "5 responses to each of 13 rows"
    assert chunk_rows(job, engines=2, rows=20) == 5, "two chunks for each engine"
    assert chunk_rows(job, engines=8, rows=1) == 1
    reproducible = replace(job, reproducible=True)
    assert {chunk_rows(reproducible, engines, 20) for engines in (1, 2, 8)} == {13}


def test_there_is_an_engine_per_tensor_parallel_group_of_each_node(job):
    devices = {"devices_per_node": 8, "nodes": 2}
    assert engine_count(job.hardware.model_copy(update=devices)) == 16
    four = job.hardware.model_copy(update=devices | {"tensor_parallel_size": 4})
    assert engine_count(four) == 4
    odd = job.hardware.model_copy(update=devices | {"tensor_parallel_size": 3})
    with pytest.raises(UserError, match="devices_per_node=8 is not a multiple of tensor_parallel"):
        engine_count(odd)
