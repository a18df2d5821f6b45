"""Atomic writes: a file or folder is complete or absent, even after a kill or a power failure."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Call `sync` on a folder and everything below it."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def write_atomically(file: Path, text: str) -> None:
    """Replace a file. A concurrent reader sees the old content or the new, never a mixture.

    Processes and hosts may write the same file at the same time: one of them wins.
    """
    with atomic_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def link_or_copy(source: str, target: str) -> None:
    """Link a file, or copy it if the file system cannot link these paths."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copy2(source, target)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a path to write, and move it to `target` if the block ends without an exception."""
    unfinished = unfinished_name(target)
    try:
        yield unfinished
        replace_file(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_name(target: Path) -> Path:
    """Return a path beside `target` that no other process uses."""
    return target.with_name(f"{target.name}.{uuid4().hex}.unfinished")


def replace_file(finished: Path, target: Path) -> None:
    """Move a finished file to `target`."""
    sync(finished)
    os.replace(finished, target)
    sync(target.parent)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder to fill, and move it to `target` if the block ends without an exception.

    A folder that is already at `target` is replaced, but only after the new one is complete. If the
    block raises, `target` stays as it was and the new folder is deleted.
    """
    unfinished = target.with_name(f"{target.name}.unfinished")
    replaced = target.with_name(f"{target.name}.replaced")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        sync_tree(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    unfinished.rename(target)
    sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)
