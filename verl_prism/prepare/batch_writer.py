"""Record batches out to a parquet file: rows are copied without a change."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_prism.data.row_files import GROUP_BYTES, GROUP_ROWS
from verl_prism.errors import UserError
from verl_prism.files import atomic_file


class BatchWriter:
    """Collects record batches into row groups of a parquet file."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self.rows = 0
        self._writer = writer
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows. Columns that they lack are null."""
        if batch.num_rows == 0:
            return
        self._waiting.append(_fitted(batch, self._schema))
        self.rows += batch.num_rows
        rows = sum(waiting.num_rows for waiting in self._waiting)
        if rows >= GROUP_ROWS or sum(waiting.nbytes for waiting in self._waiting) >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are waiting as a row group."""
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting = []


@contextmanager
def batch_writer(file: Path, schema: pa.Schema) -> Iterator[BatchWriter]:
    """Yield a writer of a parquet file that appears when the block ends without an exception.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as unfinished:
            yield from _write(unfinished, schema)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}") from None


def _write(file: Path, schema: pa.Schema) -> Iterator[BatchWriter]:
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        batches = BatchWriter(writer, schema)
        yield batches
        batches.flush()


def _fitted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch with the columns of a schema, which has all of its columns."""
    columns = []
    for field in schema:
        if field.name in batch.schema.names:
            columns.append(batch.column(field.name).cast(field.type))
        else:
            columns.append(pa.nulls(batch.num_rows, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
