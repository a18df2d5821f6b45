"""Files that a command writes. Each is complete or absent; an error names the file."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_prism.errors import UserError
from verl_prism.files import replace_file, unfinished_name


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Raise a `UserError` with the file's name if the block cannot write the file.

    The block must only write: any other `OSError` in it would also blame the file.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}") from None


@contextmanager
def output_file(file: Path) -> Iterator[Path]:
    """Yield a path to write, and move it to `file` if the block ends without an exception.

    Raises:
        UserError: the folder cannot be made, or the file cannot be moved.
    """
    unfinished = unfinished_name(file)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield unfinished
        with writing(file):
            replace_file(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def parquet_output(file: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of a parquet file that appears when the block ends without an exception.

    Raises:
        UserError: the file cannot be written.
    """
    with output_file(file) as unfinished:
        with writing(file):
            writer = pq.ParquetWriter(unfinished, schema, compression="zstd")
        yield writer
        with writing(file):
            writer.close()


class JsonLines:
    """Writes a line of JSON per record."""

    def __init__(self, file: Path, stream: IO[str]) -> None:
        self.file = file
        self._stream = stream

    def add(self, record: Mapping[str, Any]) -> None:
        """Write a record.

        Raises:
            UserError: the file cannot be written.
        """
        with writing(self.file):
            self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")


@contextmanager
def json_lines(file: Path) -> Iterator[JsonLines]:
    """Yield a file of JSON lines, which appears when the block ends without an exception.

    Raises:
        UserError: the file cannot be written.
    """
    with output_file(file) as unfinished:
        with writing(file):
            # An unpaired surrogate, which UTF-8 cannot encode, is escaped.
            stream = unfinished.open("w", encoding="utf-8", errors="backslashreplace")
        try:
            yield JsonLines(file, stream)
        finally:
            with writing(file):
                stream.close()
