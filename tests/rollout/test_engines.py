"""Engines as Ray actors, without vLLM: how the run learns that one has died."""

import os
from pathlib import Path

import pytest
import ray

from verl_prism.errors import UserError
from verl_prism.rollout.engines import EngineDiedError, RayEngines
from verl_prism.rollout.sampler import hand_out
from verl_prism.rollout.sampling import Sample

pytestmark = pytest.mark.slow


@ray.remote
class FakeEngine:
    """Finishes every row, dies at row 7 and refuses row 8."""

    def ready(self):
        pass

    def advance(self, new, keep):
        numbers = [number for number, _ in new]
        if 7 in numbers:
            os._exit(1)
        if 8 in numbers:
            raise UserError("row 8 has no image")
        return [(number, [Sample(str(number), 1, False)]) for number in numbers]

    def close(self):
        pass


@pytest.fixture(scope="module")
def connected():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def engines(connected):
    engines = RayEngines([FakeEngine.remote() for _ in range(2)], Path("/models/policy"))
    engines.wait_until_ready()
    yield engines
    engines.kill()


def sample(engines: RayEngines, first: int, last: int) -> list[int]:
    chunks = [[(number, {})] for number in range(first, last)]
    return [number for part in hand_out(engines, chunks, keep=0) for number, _ in part]


def test_both_engines_work_until_they_are_closed(engines):
    assert sorted(sample(engines, 0, 6)) == [*range(6)]
    engines.close()


def test_a_dead_engine_ends_the_run_and_is_named(engines):
    with pytest.raises(EngineDiedError) as died:
        sample(engines, 4, 8)
    message = str(died.value)
    assert message.startswith("vLLM engine ")
    assert " of 2, which sampled /models/policy, died. What was sampled before is kept" in message


def test_an_engines_user_error_is_the_runs(engines):
    with pytest.raises(UserError, match=r"^row 8 has no image$"):
        sample(engines, 8, 9)
