"""Fixtures for tests of the data commands."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from question_rows import COLUMNS

from verl_prism.data.schema import schema


@pytest.fixture
def write_rows(tmp_path):
    """Return a function that writes rows to a parquet file and returns its path."""

    def write(rows: Sequence[dict], name: str = "source.parquet") -> Path:
        columns = [column for column in COLUMNS if column in rows[0]]
        file = tmp_path / name
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema(columns)), file)
        return file

    return write
