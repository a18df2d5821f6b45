"""Write questions of the digits task in a raw form: a JSONL file and PNG files, without responses.

    python examples/digits/raw.py --data outputs/digits/data --out outputs/digits/raw

README.md shows how to get from such a file and a teacher's API to all training sets.
"""

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq


def write_raw(source: Path, folder: Path, rows: int) -> None:
    """Write the first rows of a parquet file of questions to `questions.jsonl` and `images/`."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(source, columns=["prompt", "images", "reward_model"])
    with open(folder / "questions.jsonl", "w", encoding="utf-8") as lines:
        for number, row in enumerate(table.slice(0, rows).to_pylist()):
            name = f"{number:05d}.png"
            (images / name).write_bytes(row["images"][0]["bytes"])
            record = {
                "id": f"digits-{number}",
                "image": f"images/{name}",
                "question": row["prompt"][-1]["content"].removeprefix("<image>\n"),
                "answer": row["reward_model"]["ground_truth"],
            }
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that data.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--rows", type=int, default=4096, help="number of questions")
    options = parser.parse_args()
    write_raw(options.data / "train.parquet", options.out, options.rows)


if __name__ == "__main__":
    main()
