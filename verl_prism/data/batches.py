"""A parquet file as a stream of small batches, in memory that does not grow with the file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_prism.errors import UserError

BATCH_BYTES = 2**23
MAX_BATCH_ROWS = 256
READ_BYTES = 2**20  # size of the buffer through which a column is read


def read_batches(file: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield batches of at most about 8 MiB. pyarrow itself would read a whole row group at once.

    columns: which columns to read; None: all. Those that the file lacks are left out.

    Raises:
        UserError: the file is damaged; with the first row that cannot be read.
    """
    row = 0
    try:
        with pq.ParquetFile(file, buffer_size=READ_BYTES, pre_buffer=False) as source:
            present = source.schema_arrow.names
            wanted = [name for name in present if columns is None or name in columns]
            for batch in source.iter_batches(
                batch_size=_batch_rows(source.metadata), columns=wanted, use_threads=False
            ):
                yield batch
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{file}: cannot be read from row {row} on ({error}); write or copy the file again"
        ) from None


def to_rows(file: Path, start: int, batch: pa.RecordBatch) -> list[dict]:
    """Return the rows of a batch.

    start: number of its first row in the file.

    Raises:
        UserError: a text is not UTF-8; with its row and column.
    """
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            _check_utf8(f"{file}, row {start + number}", batch.slice(number, 1))
        raise


def _batch_rows(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    row_bytes = sum(group.total_byte_size for group in groups) // max(1, metadata.num_rows)
    return min(MAX_BATCH_ROWS, max(1, BATCH_BYTES // max(1, row_bytes)))


def _check_utf8(place: str, row: pa.RecordBatch) -> None:
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            column.to_pylist()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{place}: {name} is not UTF-8 ({error}); write the text as UTF-8"
            ) from None
