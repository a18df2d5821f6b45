"""Add responses with one wrong digit and one wrong sum to a file of the policy's responses.

    python examples/digits/hard_negatives.py --samples RUN/samples.parquet --out FILE

The warm-up with `prism.warmup.responses=file` then also learns to tell the teacher's responses from
these. They are the teacher's responses except for two errors, so style does not give them away. The
questions are about the sum of a row of digits.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tasks import BiasedRow, Question


def with_hard_negative(row: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return the row with one more response."""
    facts = row["extra_info"]
    options = tuple(int(option) for option in facts["options"].split())
    question = Question(facts["kind"], tuple(facts["digits"]), options)
    responses = [*row["student_responses"], BiasedRow().nearly_right(question, rng)]
    return row | {"student_responses": responses}


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, required=True, help="output of stage sample")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    table = pq.read_table(arguments.samples)
    rows = [with_hard_negative(row, rng) for row in table.to_pylist()]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), arguments.out)
    print(f"{arguments.out}: {len(rows)} rows")


if __name__ == "__main__":
    main()
