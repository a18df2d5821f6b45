"""Rows of parquet files in, rows of a parquet file out, one at a time."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_prism.data.batches import read_batches, to_rows
from verl_prism.data.outputs import parquet_output, writing
from verl_prism.errors import UserError

Row = dict[str, Any]

GROUP_BYTES = 2**25  # of a row group, before compression
GROUP_ROWS = 10_000


def read_rows(files: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of parquet files, one file after another.

    columns: which columns to read; None: all. Those that a file lacks are left out.

    Raises:
        UserError: a file is damaged, or a text is not UTF-8; with the row.
    """
    for file in files:
        row = 0
        for batch in read_batches(file, columns):
            yield from to_rows(file, row, batch)
            row += batch.num_rows


def count_rows(files: Sequence[Path]) -> int:
    """Return the number of rows of parquet files.

    Raises:
        UserError: a file is not a parquet file.
    """
    return sum(_metadata(file).num_rows for file in files)


def common_schema(files: Sequence[Path]) -> pa.Schema:
    """Return the schema of parquet files that go into one file; a column may be missing in some.

    Raises:
        UserError: a column has different types in two files.
    """
    schemas = [_metadata(file).schema.to_arrow_schema().remove_metadata() for file in files]
    try:
        return pa.unify_schemas(schemas)
    except pa.ArrowException as error:
        names = ", ".join(str(file) for file in files)
        raise UserError(f"{names}: the columns do not fit together: {error}") from None


def row_id(row: Row) -> str:
    """Return a row's `id`, or else a digest of its question and images."""
    if row.get("id") is not None:
        return row["id"]
    digest = hashlib.sha256()
    messages = row.get("prompt") or row.get("messages") or []
    digest.update(json.dumps(messages, ensure_ascii=False).encode())
    for image in row.get("images") or []:
        content = image and image["bytes"]  # one may be null, which is found later
        digest.update(hashlib.sha256(content or b"").digest())
    return digest.hexdigest()[:16]


def with_columns(source: pa.Schema, columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return a schema with these columns added, or replaced if there are such columns."""
    for name, kind in columns.items():
        index = source.get_field_index(name)
        column = pa.field(name, kind)
        source = source.append(column) if index < 0 else source.set(index, column)
    return source


class RowWriter:
    """Collects rows into small row groups, so that other programs can read the file in pieces."""

    def __init__(self, file: Path, writer: pq.ParquetWriter) -> None:
        self.file = file
        self.rows = 0
        self._writer = writer
        self._waiting: list[Row] = []
        self._bytes = 0

    def write(self, row: Row) -> None:
        """Add a row. Columns that it lacks are null; other ones of it are not written."""
        self._waiting.append(row)
        self._bytes += _size(row)
        self.rows += 1
        if self._bytes >= GROUP_BYTES or len(self._waiting) >= GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are waiting as a row group.

        Raises:
            UserError: the file cannot be written.
        """
        if self._waiting:
            table = pa.Table.from_pylist(self._waiting, schema=self._writer.schema)
            with writing(self.file):
                self._writer.write_table(table)
        self._waiting = []
        self._bytes = 0


@contextmanager
def row_writer(file: Path, schema: pa.Schema) -> Iterator[RowWriter]:
    """Yield a writer of a parquet file that appears when the block ends without an exception.

    Raises:
        UserError: the file cannot be written.
    """
    with parquet_output(file, schema) as output:
        rows = RowWriter(file, output)
        yield rows
        rows.flush()


def _metadata(file: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a parquet file, or a damaged one ({error})") from None


def _size(value: Any) -> int:
    """Return about the number of bytes of a value."""
    match value:
        case bytes() | str():
            return len(value)
        case dict():
            return sum(_size(item) for item in value.values())
        case list() | tuple():
            return sum(_size(item) for item in value)
    return 8
