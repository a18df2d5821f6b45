"""Speed and memory of `python -m verl_prism.data check` on generated rows.

python benchmarks/check.py --folder DIR [--model MODEL]

Checks 100,000 and 1,000,000 rows of text and 20,000 rows with 640 x 480 JPEGs, and prints rows per
second, CPU milliseconds per row of all processes, and the peak of the sum of their resident memory.
With MODEL, a folder of a Qwen3-VL, tokens are counted too. DIR needs about 2.5 GB.
"""

import argparse
import io
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from verl_prism.data.schema import schema

WORDS = (
    "the of shop second bar chart shows sales difference between first number with answer red "
    "blue left right above below how many objects are there picture length width angle triangle "
    "circle area equals therefore check again value table row column total highest lowest month"
)
COLUMNS = ("id", "prompt", "images", "data_source", "reward_model", "teacher_response")
SYSTEM = "Reply in the format <caption>…</caption><think>…</think><answer>…</answer>."
BATCH = 1000
JPEG_NOISE = 24  # gives files of about 55 kB, as photos have
PICTURES = 200  # distinct ones; the end of each file differs, so that each is decoded


def texts(count: int, seed: int) -> str:
    generator = random.Random(seed)
    return " ".join(generator.choices(WORDS.split(), k=count))


def row(number: int, image: bytes | None) -> dict[str, Any]:
    placeholder = "" if image is None else "<image>\n"
    caption, reasoning = texts(20, 3 * number), texts(50, 3 * number + 1)
    return {
        "id": f"row-{number}",
        "prompt": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"{placeholder}{texts(25, 3 * number + 2)} {number}?"},
        ],
        "images": None if image is None else [{"bytes": image}],
        "data_source": "bench",
        "reward_model": {"style": "rule", "ground_truth": str(number)},
        "teacher_response": f"<caption>{caption}</caption><think>{reasoning}</think>"
        f"<answer>{number}</answer>",
    }


def jpegs() -> list[bytes]:
    """Return smooth pictures with noise."""
    generator = np.random.default_rng(0)
    down, right = np.mgrid[0:480, 0:640]
    pictures = []
    for number in range(PICTURES):
        waves = np.stack([np.sin((down + right * k) / (20 + number)) for k in (1, 2, 3)], -1)
        pixels = 110 + 70 * waves + generator.integers(0, JPEG_NOISE, (480, 640, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.astype("uint8")).save(file, "JPEG", quality=85)
        pictures.append(file.getvalue())
    return pictures


def rows(count: int, pictures: list[bytes]) -> Iterator[dict[str, Any]]:
    for number in range(count):
        image = None
        if pictures:
            image = pictures[number % len(pictures)] + number.to_bytes(8, "big")
        yield row(number, image)


def write(file: Path, count: int, pictures: list[bytes]) -> None:
    generated = rows(count, pictures)
    with pq.ParquetWriter(file, schema(COLUMNS), compression="zstd") as writer:
        while batch := list(islice(generated, BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema(COLUMNS)))


def measure(command: list[str]) -> tuple[float, float, float]:
    """Return seconds, CPU seconds and the peak of the resident GiB of all processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = psutil.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process))
        time.sleep(0.1)
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, peak / 2**30


def resident(process: psutil.Popen) -> int:
    total = 0
    for each in [process, *children(process)]:
        try:
            total += each.memory_info().rss
        except psutil.Error:
            continue
    return total


def children(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--jpeg", type=int, nargs="*", default=[20_000])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print("| rows | rows/s | CPU ms/row | peak GiB | load before |")
    print("|---|---:|---:|---:|---:|", flush=True)
    for kind, sizes in (("text", options.text), ("jpeg", options.jpeg)):
        for count in sizes:
            file = options.folder / f"{kind}-{count}.parquet"
            if not file.exists():
                write(file, count, jpegs() if kind == "jpeg" else [])
            # The same pictures come again on purpose, but with another question.
            command = [sys.executable, "-m", "verl_prism.data", "check", f"source={file}"]
            command += [f"report={options.folder / 'report'}"]
            command += [f"model={options.model.absolute()}"] if options.model else []
            load = os.getloadavg()[0]
            seconds, cpu, peak = measure(command)
            print(
                f"| {count:,} {kind} | {count / seconds:,.0f} | {cpu / count * 1000:.3f} "
                f"| {peak:.2f} | {load:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
