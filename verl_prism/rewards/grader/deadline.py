"""The time that is left for a verdict, in the thread that asks."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

SECONDS = 1.5  # for a verdict, with something left of the two seconds that are promised

_end = ContextVar("end", default=math.inf)


@contextmanager
def deadline(seconds: float = SECONDS) -> Iterator[None]:
    """Within it, `remaining` counts down from `seconds`."""
    token = _end.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _end.reset(token)


def remaining() -> float:
    """Seconds; infinity outside a deadline, 0 or less once it has passed."""
    return _end.get() - time.monotonic()
