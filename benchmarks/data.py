"""Memory and speed of the data loaders on generated data, for few and for many rows.

python benchmarks/data.py warmup --base MODEL --folder DIR
python benchmarks/data.py sft --base MODEL --folder DIR
python benchmarks/data.py rlvr --base MODEL --folder DIR

The sizes are 600 and 6,000 prompts with 1000 x 1000 JPEGs, and 3,000 and 300,000 demonstrations
with 20 kB JPEGs, and 3,000 and 30,000 questions with 20 kB JPEGs.

MODEL is a folder with a small Qwen3-VL, such as the base model of the digits example, so that the
memory is that of the data. Each side runs in its own process. "before" is what ours replaces: all
prompts encoded in memory (warm-up), and verl's own dataset (SFT). DIR needs up to 15 GB.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from verl_prism.compose import compose_run
from verl_prism.config import Prism

SIZES = {"warmup": (600, 6000), "sft": (3000, 300_000), "rlvr": (3000, 30_000)}
BEFORE = {"warmup": (60, 120), "sft": (3000, 30_000), "rlvr": (3000, 30_000)}
ROW_GROUP = 125_000  # rows: 2.5 GB of 20 kB images
ANSWER = "<caption>{}</caption><think>{}</think><answer>3</answer>"
TEXT = "A picture with many colors. " * 8
RANKS = 8
ROWS_READ = 2000  # of SFT, after the start
STEPS_READ = 12  # of the warm-up
PIXELS = {"shortest_edge": 65536, "longest_edge": 16777216}  # the limits of Qwen3-VL


def jpeg(side: int, noise: int, seed: int) -> bytes:
    """Return a smooth picture with noise, which decides the size of the file."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, side)
    picture = np.add.outer(ramp, ramp)[..., None] / 2 + generator.integers(
        0, noise, (side, side, 3)
    )
    file = io.BytesIO()
    Image.fromarray(picture.astype("uint8")).save(file, "JPEG", quality=85)
    return file.getvalue()


def write_rows(file: Path, rows: int, part: str) -> None:
    """Write rows with few distinct images. The bytes of every image differ at the end."""
    image = {"warmup": (1000, 30), "sft": (280, 40), "rlvr": (280, 40)}[part]
    pictures = [jpeg(*image, seed) for seed in range(8)]
    role = pa.struct([("role", pa.string()), ("content", pa.string())])
    column = "messages" if part == "sft" else "prompt"
    fields = [(column, pa.list_(role)), ("images", pa.list_(pa.struct([("bytes", pa.binary())])))]
    schema = pa.schema([*fields, ("teacher_response", pa.string())])
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, 500):
            numbers = range(start, min(start + 500, rows))
            batch = [row(number, pictures, column) for number in numbers]
            batch = pa.RecordBatch.from_pylist(batch, schema)
            writer.write_batch(batch, row_group_size=ROW_GROUP)


def row(number: int, pictures: list[bytes], column: str) -> dict[str, Any]:
    answer = ANSWER.format(TEXT + str(number), TEXT)
    messages = [{"role": "user", "content": f"<image>\nQuestion {number}: how many colors?"}]
    if column == "messages":
        messages.append({"role": "assistant", "content": answer})
    content = pictures[number % len(pictures)] + number.to_bytes(8, "big")
    return {column: messages, "images": [{"bytes": content}], "teacher_response": answer}


def compose(part: str, folder: Path, rows: int, base: Path) -> tuple[Any, Prism]:
    overrides = [
        f"stage={part}",
        f"prism.root={folder}",
        f"prism.policy={base}",
        f"prism.output={folder / 'run'}",
        f"prism.data.train={folder / f'{part}-{rows}.parquet'}",
        "prism.data.max_response_tokens=8192",
        "prism.hardware.max_tokens_per_device=8192",
        "prism.hardware.dataloader_workers=0",
    ]
    if part == "warmup":
        overrides += [f"prism.warmup.prompts={rows}", "prism.steps=938"]
        overrides += ["prism.warmup.pairs_per_step=128", "prism.warmup.samples_per_prompt=10"]
    return compose_run(overrides)


def warmup_ours(prism: Prism) -> Iterator[int]:
    """Read the shares of rank 0 of 8 of some steps, then of the held-out prompts."""
    from verl_prism.stages.warmup_data import WarmupData

    rollouts = [[ANSWER.format(TEXT + str(n), TEXT) for n in range(10)]] * prism.warmup.prompts
    ranks = SimpleNamespace(rank=0, world_size=RANKS, share=lambda items, do: list(map(do, items)))
    data = WarmupData(prism, rollouts, ranks)
    yield 0
    for shares in (data.train_shares(0), data.heldout_shares()):
        for share in islice(shares, STEPS_READ):
            yield len(share.groups)


def warmup_before(prism: Prism) -> Iterator[int]:
    """Encode all prompts, as every rank did."""
    from transformers import AutoProcessor

    from verl_prism.data.rows import train_rows
    from verl_prism.stages.warmup_data import encode_row

    processor = AutoProcessor.from_pretrained(prism.policy)
    yield 0
    kept = []
    for each in train_rows(prism):
        kept.append(encode_row(processor, each))
        yield 1


def verl_rows(part: str, config: Any, prism: Prism, ours: bool) -> Iterator[int]:
    """Read rows in the order of verl's trainer."""
    from omegaconf import OmegaConf
    from torch.utils.data import DistributedSampler
    from verl.utils import hf_processor, hf_tokenizer
    from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from verl_prism.data.datasets import PrismRLDataset, PrismSFTDataset

    classes = {
        "sft": (MultiTurnSFTDataset, PrismSFTDataset),
        "rlvr": (RLHFDataset, PrismRLDataset),
    }
    dataset_class = classes[part][ours]
    data = OmegaConf.create(OmegaConf.to_container(config.data, resolve=True))
    model = (hf_tokenizer(str(prism.policy)), data, hf_processor(str(prism.policy)))
    dataset = dataset_class(data.train_files, *model)
    yield 0
    order = iter(DistributedSampler(dataset, num_replicas=RANKS, rank=0))
    for index in islice(order, ROWS_READ):
        dataset[index]
        yield 1


def measure(part: str, side: str, rows: int, folder: Path, base: Path) -> dict[str, float]:
    """Run one side in this process."""
    config, prism = compose(part, folder, rows, base)
    if part != "warmup":
        reading = verl_rows(part, config, prism, side == "ours")
    else:
        reading = warmup_ours(prism) if side == "ours" else warmup_before(prism)
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    started = time.monotonic()
    next(reading)
    start_seconds = time.monotonic() - started
    started = time.monotonic()
    cpu_started = time.process_time()
    read = sum(reading)
    seconds = time.monotonic() - started
    cpu_seconds = time.process_time() - cpu_started
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    resident = psutil.Process().memory_info().rss / 2**30
    return {
        "start_seconds": start_seconds,
        "rows_per_second": read / seconds,
        "rows_per_cpu_second": read / cpu_seconds,
        "peak_gib": peak,
        "resident_gib": resident,
    }


def model_with_limits(base: Path, folder: Path) -> Path:
    """Return a copy of the model that takes images as large as Qwen3-VL does."""
    target = folder / "base"
    shutil.copytree(base, target, dirs_exist_ok=True)
    file = target / "processor_config.json"
    content = json.loads(file.read_text())
    content["image_processor"]["size"] = PIXELS
    file.write_text(json.dumps(content))
    return target


def run(part: str, base: Path, folder: Path, sizes: list[int]) -> None:
    """Measure all sides and print a table."""
    folder.mkdir(parents=True, exist_ok=True)
    base = model_with_limits(base, folder) if part == "warmup" else base
    if part == "warmup":
        make_upcycled(folder / "run" / "upcycled", base)
    sides = [("before", rows) for rows in BEFORE[part]] + [("ours", rows) for rows in sizes]
    print("| side | rows | start s | rows/s | rows/CPU s | peak GiB | resident GiB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for side, rows in sides:
        file = folder / f"{part}-{rows}.parquet"
        if not file.exists():
            write_rows(file, rows, part)
        command = [sys.executable, __file__, part, f"--base={base}", f"--folder={folder}"]
        command += [f"--side={side}", f"--rows={rows}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        cells = [f"{found[name]:.2f}" for name in found]
        print(f"| {side} | {rows:,} | {' | '.join(cells)} |", flush=True)


def make_upcycled(folder: Path, base: Path) -> None:
    from verl_prism.discriminator import upcycle

    if not folder.exists():
        upcycle(base, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=SIZES)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="*", help="numbers of rows of our side")
    parser.add_argument("--side", choices=("ours", "before"), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        arguments = (options.side, options.rows, options.folder, options.base)
        print(json.dumps(measure(options.part, *arguments)))
    else:
        run(options.part, options.base, options.folder, options.sizes or SIZES[options.part])


if __name__ == "__main__":
    main()
