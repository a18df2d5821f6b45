"""The samples of a run with their questions and thumbnails, for the report's browser."""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from verl_prism.data.messages import question_text
from verl_prism.data.rows import Rows, parquet_files, skipped_rows
from verl_prism.errors import UserError
from verl_prism.report.page.runs import Settings, number
from verl_prism.report.step_samples import RESPONSE, ROW, STEP, evenly
from verl_prism.response import BLOCK_NAMES, parse_response
from verl_prism.run_folder import RunFolder

THUMBNAIL = 160  # pixels of the longer side
QUALITY = 70
COLUMNS = ("prompt", "messages", "images", "teacher_response", "reward_model")

Sample = Mapping[str, Any]


def samples_file(run: RunFolder, settings: Settings) -> Path:
    """Return the file that has the samples of a run: JSON lines."""
    match settings["stage"]:
        case "eval":
            return run.responses
        case "sample":
            return run.rollouts
        case "warmup" if not run.step_samples.exists():  # no step yet
            return run.rollouts
    return run.step_samples


def sample_data(run: RunFolder, settings: Settings, count: int) -> dict[str, Any]:
    """Return about `count` samples of a run, their questions, and a note on what is left out."""
    file = samples_file(run, settings)
    lines = count_lines(file)
    chosen = evenly(range(lines), max(1, count // responses_per_line(file)))
    shown = [sample for line in read_lines(file, chosen) for sample in samples_in(line)]
    notes = []
    if len(chosen) < lines:
        notes.append(
            f"This page has {len(chosen):,} of the {lines:,} lines of {file.name}, evenly spaced."
        )
    questions: dict[int, Any] = {}
    if shown:
        try:
            rows = _rows(run, settings)
            numbers = sorted({sample[ROW] for sample in shown})
            questions = {number: question(rows[number]) for number in numbers}
        except (UserError, OSError, IndexError) as error:
            notes.append(f"Questions and images are missing: {error}")
    return {
        "samples": [sample_of(sample) for sample in shown],
        "questions": questions,
        "note": " ".join(notes),
    }


def count_lines(file: Path) -> int:
    """Return the number of complete lines of a file, 0 if it does not exist."""
    if not file.exists():
        return 0
    with file.open("rb") as lines:
        return sum(line.endswith(b"\n") for line in lines)


def responses_per_line(file: Path) -> int:
    """Return how many responses the first line of a file has, at least 1."""
    for line in read_lines(file, range(1)):
        return max(1, len(samples_in(line)))
    return 1


def read_lines(file: Path, numbers: Sequence[int]) -> Iterator[Any]:
    """Yield these lines of a file. Memory holds one line at a time."""
    wanted = set(numbers)
    if not wanted or not file.exists():
        return
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines):
            if number in wanted and line.endswith("\n"):
                yield json.loads(line)


def samples_in(line: Mapping[str, Any]) -> list[Sample]:
    """Return the samples of a line of any of the three files."""
    if "responses" in line:
        return [{ROW: line["row"], RESPONSE: text} for text in line["responses"]]
    if "question" not in line:
        return [line]
    number = "greedy" if line["sample"] is None else f"sample {line['sample']}"
    marks = {"policy": line["policy"], "decoding": number, **line["marks"]}
    if "opinion" in line:
        marks["judge"] = line["opinion"]
    return [{ROW: line["question"], RESPONSE: line["text"], **marks}]


def _rows(run: RunFolder, settings: Settings) -> Rows:
    """Return the rows that the stage has read, by the numbers that it counts them with."""
    split = "heldout" if settings["stage"] == "eval" else "train"
    source = settings["data"][split]
    paths = tuple(map(Path, source)) if isinstance(source, list) else Path(source)
    files = parquet_files(f"prism.data.{split}", paths)
    rows = Rows(files, Path(settings["data"]["cache"]), COLUMNS, skipped_rows(run)[split])
    return rows.evenly(settings["warmup"]["prompts"]) if settings["stage"] == "warmup" else rows


def sample_of(sample: Sample) -> dict[str, Any]:
    """Return a sample as the page's script reads it: its blocks or fault, and its marks."""
    marks = {}
    for name, value in sample.items():
        if name not in (ROW, RESPONSE, STEP):
            marks[name] = _mark(value)
    return {
        "row": sample[ROW],
        "step": sample.get(STEP),
        "marks": marks,
        **blocks(sample[RESPONSE]),
    }


def _mark(value: Any) -> Any:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float):
        return number(value)
    return value


def blocks(text: str) -> dict[str, Any]:
    """Return the content of the three blocks, or the fault and the text of an invalid response."""
    response = parse_response(text)
    if not response.valid:
        return {"fault": str(response.fault), "text": text}
    contents = (response.caption, response.think, response.answer)
    return {"blocks": dict(zip(BLOCK_NAMES, contents, strict=True))}


def question(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a question as the page's script reads it."""
    gold = row["reward_model"]
    teacher = row["teacher_response"]
    return {
        "text": question_text(row),
        "gold": None if gold is None else gold["ground_truth"],
        "teacher": None if teacher is None else blocks(teacher),
        "images": [thumbnail(image["bytes"]) for image in row["images"] or ()],
    }


def thumbnail(encoded: bytes) -> str:
    """Return a small JPEG of an image, in base64."""
    with Image.open(io.BytesIO(encoded)) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
