"""Small sources for tests of `convert`, and a function that converts them."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from verl_prism.prepare.command import run_command
from verl_prism.prepare.report import Report

RESPONSE = "<caption>Left a 3, right a 6.</caption><think>3 + 6 = 9.</think><answer>9</answer>"


def encoded(form: str, mode: str = "RGB", width: int = 64, height: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 60).convert(mode).save(buffer, form)
    return buffer.getvalue()


PNG, JPEG, WEBP = encoded("PNG"), encoded("JPEG"), encoded("WEBP")


class Converted:
    """What a conversion wrote."""

    def __init__(self, report: Report, output: Path) -> None:
        self.report = report
        self.output = output
        self.rows = pq.read_table(output).to_pylist()
        file = output.with_name(f"{output.name}.rejects.jsonl")
        lines = file.read_text().splitlines() if file.exists() else []
        self.rejects = [json.loads(line) for line in lines]


def convert(source: Path, *settings: str, output: Path | None = None) -> Converted:
    output = output or source.parent / "converted" / "rows.parquet"
    arguments = [f"source={source}", f"output={output}", *settings]
    return Converted(run_command("convert", arguments), output)


def write_lines(file: Path, *records: dict | bytes) -> Path:
    """Write JSON lines; bytes are written as they are."""
    lines = [
        record if isinstance(record, bytes) else json.dumps(record, ensure_ascii=False).encode()
        for record in records
    ]
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return file


def write_pictures(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(PNG)
    (folder / "b.jpg").write_bytes(JPEG)
