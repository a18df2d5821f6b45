"""A copy of a parquet file as small Arrow record batches, from which single rows can be read.

A row of parquet can only be decoded with its whole row group, which may have gigabytes. The copy is
made once per file, as a stream: its memory does not depend on the size of the file or of its row
groups. Deleting the folder of copies is safe between runs.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from verl_prism.errors import UserError
from verl_prism.files import atomic_folder

BATCH_BYTES = 256 * 2**10  # of a record batch, which is read whole for any of its rows
MAX_BATCH_ROWS = 1024
READ_BYTES = 2**20  # size of the buffer through which each column of a parquet file is read
LAYOUT = 1  # part of the name of a copy; raise it when the content of a copy changes
BATCHES = "batches.arrow"
STARTS = "starts.npy"

Progress = Callable[[int, int], None]  # is given the rows so far and in total


def has_copy(file: Path, cache: Path) -> bool:
    """Return whether `cache` has a copy of `file` as it is now."""
    return (cache / _copy_name(file)).is_dir()


def arrow_copy(file: Path, cache: Path, on_progress: Progress = lambda done, total: None) -> Path:
    """Return the folder below `cache` with the copy of `file`. Make the copy if there is none.

    If several processes need the same copy, one makes it and the others wait.

    on_progress: is called after each record batch that this process copies.

    Raises:
        UserError: the file cannot be read, or the disk of `cache` is too small.
    """
    folder = cache / _copy_name(file)
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _check_free_space(file, cache)
                with atomic_folder(folder) as unfinished:
                    _write_copy(file, unfinished, on_progress)
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: not a parquet file, or a damaged one ({error})") from None
    except OSError as error:
        raise UserError(f"{file} cannot be copied to prism.data.cache={cache}: {error}") from None
    return folder


def _copy_name(file: Path) -> str:
    """Return a name that changes when the path, the size or the time of the file changes."""
    file = file.resolve()
    status = file.stat()
    identity = f"{LAYOUT} {file} {status.st_size} {status.st_mtime_ns}"
    return f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _check_free_space(file: Path, cache: Path) -> None:
    needed = _uncompressed_bytes(pq.read_metadata(file))
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(
            f"prism.data.cache={cache}: the copy of {file} needs {needed / 1e9:.1f} GB, "
            f"but only {free / 1e9:.1f} GB are free; set prism.data.cache to a larger disk"
        )


def _write_copy(file: Path, folder: Path, on_progress: Progress) -> None:
    starts = [0]
    # Without a buffer, pyarrow would read a column of a row group at once.
    with pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False) as source:
        schema = source.schema_arrow.remove_metadata()
        with (
            pa.OSFile(str(folder / BATCHES), "wb") as sink,
            pa.ipc.new_file(sink, schema) as target,
        ):
            for batch in _batches(source):
                target.write_batch(batch)
                starts.append(starts[-1] + batch.num_rows)
                on_progress(starts[-1], source.metadata.num_rows)
    np.save(folder / STARTS, np.array(starts))


def _batches(source: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    rows = max(1, source.metadata.num_rows)
    row_bytes = max(1, _uncompressed_bytes(source.metadata) // rows)
    batch_rows = min(MAX_BATCH_ROWS, max(1, BATCH_BYTES // row_bytes))
    return source.iter_batches(batch_size=batch_rows, use_threads=False)


def _uncompressed_bytes(metadata: pq.FileMetaData) -> int:
    groups = range(metadata.num_row_groups)
    return sum(metadata.row_group(group).total_byte_size for group in groups)
