"""Record batches out to a parquet file: rows are copied without a change."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_prism.data.outputs import parquet_output, writing
from verl_prism.data.row_files import GROUP_BYTES, GROUP_ROWS


class BatchWriter:
    """Collects record batches into row groups of a parquet file."""

    def __init__(self, file: Path, writer: pq.ParquetWriter) -> None:
        self.file = file
        self.rows = 0
        self._writer = writer
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._waiting_bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows. Columns that they lack are null."""
        if batch.num_rows == 0:
            return
        fitted = _fitted(batch, self._writer.schema)
        self._waiting.append(fitted)
        self._waiting_rows += fitted.num_rows
        self._waiting_bytes += fitted.nbytes
        self.rows += fitted.num_rows
        if self._waiting_rows >= GROUP_ROWS or self._waiting_bytes >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are waiting as a row group.

        Raises:
            UserError: the file cannot be written.
        """
        if self._waiting:
            table = pa.Table.from_batches(self._waiting, self._writer.schema)
            with writing(self.file):
                self._writer.write_table(table)
        self._waiting = []
        self._waiting_rows = 0
        self._waiting_bytes = 0


@contextmanager
def batch_writer(file: Path, schema: pa.Schema) -> Iterator[BatchWriter]:
    """Yield a writer of a parquet file that appears when the block ends without an exception.

    Raises:
        UserError: the file cannot be written.
    """
    with parquet_output(file, schema) as output:
        batches = BatchWriter(file, output)
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
