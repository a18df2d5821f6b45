"""The progress bar of a command, with the time left."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


class Progress:
    """A bar on a terminal; elsewhere a line once a minute."""

    def __init__(self, bar: "tqdm[object]") -> None:
        self._bar = bar

    def add(self, rows: int = 1) -> None:
        """Count rows as done."""
        self._bar.update(rows)

    def note(self, text: str) -> None:
        """Show a short text beside the bar, such as the costs so far."""
        self._bar.set_postfix_str(text, refresh=False)


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Progress]:
    """Show the progress of a block. total: rows that are expected; None: unknown."""
    terminal = sys.stderr.isatty()
    with tqdm(
        total=total,
        desc=title,
        unit=" rows",
        mininterval=0.2 if terminal else 60.0,
        miniters=None if terminal else 1,
        dynamic_ncols=terminal,
        leave=False,
        delay=2.0,
        file=sys.stderr,
    ) as bar:
        yield Progress(bar)
