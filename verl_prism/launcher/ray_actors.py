"""The driver's eye on the run's Ray actors of all nodes; those of its own node its parent sees better (`watch.py`)."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

POLL_SECONDS = 5.0
GRACE_SECONDS = 30.0  # for the parent, which knows more, and for the run to end by itself


@contextmanager
def watched_actors(metrics: Path) -> Iterator[None]:
    """An actor that is gone while the block runs ends this process with exit code 1, unless the block ends before.

    metrics: the file that the steps are logged to. Before the first one actors may come and go, and those without a
    name at any time: verl names its workers, vLLM servers, agent loops and reward loops.
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
            sys.stderr.write(
                f"ActorDied: {', '.join(sorted(gone))} of this run ended, and the run waits for it\n"
            )
            sys.stderr.flush()
            os._exit(1)
        known = present
