"""Results of passes over data files, kept in the user's cache folder.

A result is found again if the stage's settings, the model's tokenizer, chat template and image
processor, and the files are the same. A file counts as the same if its size, its time and a sample
of its blocks are, the last one included, where parquet describes the whole file: reading every byte
would take as long as the check. Only passes without a mistake are kept. The folder can be deleted
at any time; VERL_PRISM_CACHE names another one.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_prism.data.checks.rows import FileReport
from verl_prism.files import write_atomically

RULES = 4  # raise it when a check changes
BLOCKS = 16
BLOCK_BYTES = 2**16


def cache_folder() -> Path:
    """Return the folder of cached results."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "verl_prism"
    return Path(os.environ.get("VERL_PRISM_CACHE") or default).expanduser() / "checks"


def result_key(file: Path, model_files: Iterable[Path], settings: Any) -> str:
    """Return the key of a pass over `file`: a hash of everything that its result depends on.

    settings: anything that JSON can hold.
    """
    digest = hashlib.sha256(json.dumps([RULES, settings], sort_keys=True).encode())
    for model_file in model_files:
        digest.update(model_file.read_bytes())
    status = file.stat()
    digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    with open(file, "rb") as content:
        for block in range(BLOCKS):
            content.seek(max(0, status.st_size - BLOCK_BYTES) * block // (BLOCKS - 1))
            digest.update(content.read(BLOCK_BYTES))
    return digest.hexdigest()


def read_result(key: str) -> FileReport | None:
    """Return the cached result, None if there is none."""
    try:
        return FileReport(**json.loads((cache_folder() / f"{key}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_result(key: str, report: FileReport) -> None:
    """Keep a result. If the folder is not writable, the next run repeats the pass."""
    with contextlib.suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomically(cache_folder() / f"{key}.json", json.dumps(asdict(report)))
