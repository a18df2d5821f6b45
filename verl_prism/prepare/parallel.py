"""Batches of rows of parquet files, worked on by several processes in flat memory."""

import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from verl_prism.data.batches import read_batches, to_rows
from verl_prism.errors import UserError

Result = TypeVar("Result")

WAITING = 3  # batches of up to about 8 MiB per process


@dataclass(frozen=True)
class Batch:
    """Some rows of a file.

    start: number of the first one in the file. source: number of the file, if there are several.
    """

    file: Path
    start: int
    data: pa.RecordBatch
    source: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows.

        Raises:
            UserError: a text is not UTF-8; with its row and column.
        """
        return to_rows(self.file, self.start, self.data)


def file_batches(
    file: Path, columns: Sequence[str] | None = None, source: int = 0
) -> Iterator[Batch]:
    """Yield the rows of a parquet file in batches.

    Raises:
        UserError: the file is damaged; with the first row that cannot be read.
    """
    start = 0
    for data in read_batches(file, columns):
        yield Batch(file, start, data, source)
        start += data.num_rows


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_batches(
    make: Callable[[], Callable[[Batch], Result]], batches: Iterator[Batch], workers: int
) -> Iterator[Result]:
    """Yield what a function returns for each batch, in the order of the batches.

    make: returns the function; each process calls it once. It has to be picklable.
    workers: number of processes; 0: this process does the work.

    Raises:
        UserError: a process was killed, usually for lack of memory; and what the function raises.
    """
    if workers == 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from map(make(), batches)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start, initargs=(make,)
    )
    waiting: deque[tuple[Batch, Future[Result]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, _submit(pool, batch)))
            if len(waiting) >= WAITING * workers:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, batch: Batch) -> "Future[Any]":
    try:
        return pool.submit(_work, batch)
    except BrokenProcessPool:
        raise _killed(batch) from None


def _result(batch: Batch, future: "Future[Result]") -> Result:
    try:
        return future.result()
    except BrokenProcessPool:
        raise _killed(batch) from None


def _killed(batch: Batch) -> UserError:
    return UserError(
        f"{batch.file}, near row {batch.start}: a worker process was killed, perhaps because the "
        "memory is full; use fewer workers"
    )


_make: Callable[[], Callable[[Batch], Any]] | None = None
_function: Callable[[Batch], Any] | None = None


def _start(make: Callable[[], Callable[[Batch], Any]]) -> None:
    """Prepare a worker process: it ends with its parent, and leaves Ctrl-C to it."""
    global _make
    _make = make
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _work(batch: Batch) -> Any:
    global _function
    if _function is None:
        assert _make is not None
        _function = _make()
    return _function(batch)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
