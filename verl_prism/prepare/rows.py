"""Moved to `verl_prism.data.row_files`."""

from verl_prism.data.row_files import (
    Row,
    RowWriter,
    common_schema,
    count_rows,
    read_rows,
    row_id,
    with_columns,
)

__all__ = [
    "Row",
    "RowWriter",
    "common_schema",
    "count_rows",
    "read_rows",
    "row_id",
    "with_columns",
]
