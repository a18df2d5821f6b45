"""Rows whose number of images differs: null, none, one and two."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

IMAGES = (0, 0, 1, 2)  # of rows 0 to 3, 4 to 7, …


def write_mixed_images(source: Path, target: Path, rows: int) -> Path:
    """Write the first rows of a file of the digits with other numbers of images."""
    table = pq.read_table(source).slice(0, rows)
    columns = [name for name in ("prompt", "messages") if name in table.column_names]
    changed = table.to_pylist()
    for number, row in enumerate(changed):
        one = row["images"]
        row["images"] = (None, [], one, one * 2)[number % 4]
        for column in columns:
            user = next(message for message in row[column] if message["role"] == "user")
            user["content"] = "<image>" * IMAGES[number % 4] + "What is the sum?"
    pq.write_table(pa.Table.from_pylist(changed, schema=table.schema), target)
    return target
