"""The files of a check: what is wrong with a whole file, and its rows in batches."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_prism.data.checks.columns import convert_hint, type_problems
from verl_prism.data.checks.rows import columns_to_read
from verl_prism.data.rows import parquet_files
from verl_prism.data.schema import COLUMNS
from verl_prism.errors import UserError
from verl_prism.prepare.check.findings import Finding, RowReason
from verl_prism.prepare.parallel import Batch, file_batches

MESSAGES = ("prompt", "messages")


@dataclass
class SourceFile:
    """A file of a split.

    Attributes:
        first: number of its first row in the split.
        rows: number of its rows; 0 if it cannot be opened.
        readable: number of rows before the first one that cannot be read.
        finding: what is wrong with the file.
    """

    split: str
    path: Path
    first: int
    rows: int
    readable: int
    finding: Finding | None = None

    def fail(self, row: int, reason: RowReason, text: str) -> None:
        """Note that the rows from this one on cannot be used."""
        self.readable = row
        rows = max(1, self.rows - row)
        self.finding = Finding(row, None, [(reason, text)], rows=rows)


def source_files(splits: Mapping[str, object]) -> list[SourceFile]:
    """Return the files of all splits, with what is wrong with their columns.

    Raises:
        UserError: a path names no file.
    """
    files = []
    for split, source in splits.items():
        first = 0
        for path in parquet_files(f"source.{split}", source):  # type: ignore[arg-type]
            file = _source_file(split, path, first)
            files.append(file)
            first += file.rows
    return files


def _source_file(split: str, path: Path, first: int) -> SourceFile:
    try:
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        file = SourceFile(split, path, first, 0, 0)
        file.fail(0, RowReason.FILE, f"not a parquet file, or a damaged one ({error})")
        return file
    file = SourceFile(split, path, first, metadata.num_rows, metadata.num_rows)
    if file.rows == 0:
        file.fail(0, RowReason.EMPTY_FILE, "no rows")
    wrong = "; ".join(column_problems(path, schema, COLUMNS))
    if wrong:
        file.fail(0, RowReason.COLUMNS, wrong)
    return file


def column_problems(path: Path, schema: pa.Schema, columns: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with columns: no messages, or a wrong type."""
    repeated = {name for name in schema.names if schema.names.count(name) > 1}
    if repeated:
        yield f"two columns have the name {min(repeated)}"
        return
    if not set(MESSAGES) & set(schema.names):
        yield (
            f"no column prompt or messages; it has {', '.join(schema.names)}"
            + convert_hint(path, ["messages"])
        )
    for column, problem in type_problems(schema, columns):
        yield problem + convert_hint(path, [column])


def readable_batches(file: SourceFile) -> Iterator[Batch]:
    """Yield the rows of a file before its damage, with all columns.

    Raises:
        UserError: a column that was not read before is damaged.
    """
    batches = file_batches(file.path)
    row = 0
    while row < file.readable:
        batch = next(batches)
        yield batch
        row += batch.data.num_rows


def read_files(files: list[SourceFile]) -> Iterator[Batch]:
    """Yield the rows of the files that can be read; note in a file where it is damaged."""
    for source, file in enumerate(files):
        if file.finding is not None:
            continue
        row = 0
        columns = [column for column in COLUMNS if column != "extra_info"]
        try:
            for batch in file_batches(file.path, columns_to_read(file.path, columns), source):
                yield batch
                row += batch.data.num_rows
        except UserError as error:
            text = str(error).removeprefix(f"{file.path}: ")
            file.fail(row, RowReason.FILE, text)
