"""Files and folders that are there whole or not at all, also after a kill or a power cut."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)


def replace_text(file: Path, text: str) -> None:
    """Writes a file anew; whoever reads it meanwhile finds the old one."""
    aside = file.with_name(f"{file.name}.unfinished")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    os.replace(aside, file)
    sync(file.parent)


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A new folder to fill. When the block ends without an exception it is at `target`, in the place of an older."""
    aside = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    sync_tree(aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    sync(target.parent)
