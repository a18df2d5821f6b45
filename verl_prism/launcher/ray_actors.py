"""The driver's watch over the run's Ray actors on all nodes.

The launcher knows more about the processes on its own node (`watch.py`).
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

POLL_SECONDS = 5.0
GRACE_SECONDS = 30.0  # for the launcher to report more, and for the run to end by itself


@contextmanager
def watched_actors(metrics: Path) -> Iterator[None]:
    """Exit this process with code 1 if a named actor dies during the block.

    verl names its workers, vLLM servers, agent loops and reward loops. Actors without a name, and
    all actors before the first step, may start and end.

    metrics: the file to which steps are logged.
    """
    ended = threading.Event()
    threading.Thread(target=_watch, args=(metrics, ended), name="actors", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _watch(metrics: Path, ended: threading.Event) -> None:
    known: set[str] = set()
    while not ended.wait(POLL_SECONDS):
        present = set(ray.util.list_named_actors()) if ray.is_initialized() else set()
        gone = known - present
        if gone and metrics.exists() and metrics.stat().st_size and not ended.wait(GRACE_SECONDS):
            names = ", ".join(sorted(gone))
            sys.stderr.write(f"ActorDied: {names} of this run died, and the run waits for it\n")
            sys.stderr.flush()
            os._exit(1)
        known = present
