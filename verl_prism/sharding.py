"""Which dimension of a parameter is divided among ranks."""

from collections.abc import Sequence

EXPERTS_DIMENSIONS = 3  # experts, outputs, inputs


def shard_dimension(shape: Sequence[int], ranks: int) -> int:
    """Return the dimension of a parameter along which it is divided among `ranks`.

    It is the first one, as always in FSDP2, except for experts. Four experts on eight ranks would
    give four ranks a whole expert each and the others padding of the same size, so experts are
    divided along the first dimension that divides evenly.
    """
    if len(shape) != EXPERTS_DIMENSIONS:
        return 0
    even = [dimension for dimension, size in enumerate(shape) if size % ranks == 0]
    return even[0] if even else 0
