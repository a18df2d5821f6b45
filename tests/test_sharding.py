"""Which dimension of a parameter is divided among ranks."""

import pytest

from verl_prism.sharding import shard_dimension

GATE_AND_UP = (4, 12288, 2048)  # of Qwen3-VL-2B with four experts


@pytest.mark.parametrize(
    ("shape", "ranks", "dimension"),
    [
        ((151936, 2048), 7, 0),
        ((2048,), 8, 0),
        (GATE_AND_UP, 2, 0),
        (GATE_AND_UP, 4, 0),
        (GATE_AND_UP, 8, 1),
        (GATE_AND_UP, 64, 1),
        ((4, 2048, 6144), 6, 2),
        (GATE_AND_UP, 7, 0),
    ],
)
def test_experts_are_divided_along_the_first_dimension_that_divides_evenly(shape, ranks, dimension):
    assert shard_dimension(shape, ranks) == dimension
