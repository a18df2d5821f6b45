"""Tiny files in the columns that the benchmarks of `examples/benchmarks` publish."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

TEXT = pa.string()
IMAGE = pa.struct({"bytes": pa.binary(), "path": TEXT})  # how `datasets` stores images


def png(gray: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 3), gray).save(buffer, "PNG")
    return buffer.getvalue()


def picture(gray: int) -> dict:
    return {"bytes": png(gray), "path": f"{gray}.png"}


VISTA_METADATA = {
    **dict.fromkeys(("category", "context", "grade", "language", "source", "split", "task"), TEXT),
    "img_height": pa.int64(),
    "img_width": pa.int64(),
    "skills": pa.list_(TEXT),
}
VERSE_METADATA = dict.fromkeys(("split", "source", "subject", "subfield"), TEXT)
IMAGES = [f"image_{number}" for number in range(1, 8)]
PUBLISHED = {
    "mathvista": {
        **dict.fromkeys(("pid", "question", "image", "unit", "answer", "question_type"), TEXT),
        **dict.fromkeys(("answer_type", "query"), TEXT),
        "decoded_image": IMAGE,
        "choices": pa.list_(TEXT),
        "precision": pa.float64(),
        "metadata": pa.struct(VISTA_METADATA),
    },
    "mathverse": {
        **dict.fromkeys(("sample_index", "problem_index", "problem_version", "question"), TEXT),
        "image": IMAGE,
        **dict.fromkeys(("answer", "question_type", "query_wo", "query_cot"), TEXT),
        "question_for_eval": TEXT,
        "metadata": pa.struct(VERSE_METADATA),
    },
    "mathvision": {
        **dict.fromkeys(("id", "question", "image", "answer", "solution", "subject"), TEXT),
        "options": pa.list_(TEXT),
        "decoded_image": IMAGE,
        "level": pa.int64(),
    },
    "wemath": {
        **dict.fromkeys(("ID", "split", "knowledge concept", "question", "option"), TEXT),
        **dict.fromkeys(("answer", "key", "knowledge concept description"), TEXT),
        "image_path": IMAGE,
        "question number": pa.int64(),
    },
    "mmmu": {
        **dict.fromkeys(("id", "question", "options", "explanation", "img_type", "answer"), TEXT),
        **dict.fromkeys(("topic_difficulty", "question_type", "subfield"), TEXT),
        **dict.fromkeys(IMAGES, IMAGE),
    },
    "hallusion_bench": {
        **dict.fromkeys(("category", "subcategory", "visual_input", "set_id", "figure_id"), TEXT),
        **dict.fromkeys(("sample_note", "question_id", "question", "gt_answer"), TEXT),
        **dict.fromkeys(("gt_answer_details", "filename"), TEXT),
        "image": IMAGE,
    },
}
STANDARD = {
    **dict.fromkeys(("id", "question", "options", "explanation", "img_type", "answer"), TEXT),
    **dict.fromkeys(("topic_difficulty", "subject"), TEXT),
    **dict.fromkeys(IMAGES, IMAGE),
}
VISION = {**dict.fromkeys(("id", "options", "answer", "subject"), TEXT), "image": IMAGE}

CHOICE = {
    "pid": "7",
    "query": "Hint: Give the letter.\nQuestion: Which?\nChoices:\n(A) 4\n(B) 5",
    "choices": ["4", "5"],
    "answer": "5",
    "question_type": "multi_choice",
    "answer_type": "text",
    "decoded_image": picture(1),
    "metadata": {"skills": ["algebraic", "logical"], "task": "geometry", "language": "english"},
}
NUMBER = {
    **CHOICE,
    "pid": "8",
    "query": "Hint: One decimal.\nQuestion: How long? (Unit: cm)",
    "choices": None,
    "answer": "1.2",
    "question_type": "free_form",
    "answer_type": "float",
    "decoded_image": picture(2),
}
VERSE = {
    "sample_index": "1",
    "problem_index": "1",
    "problem_version": "Vision Only",
    "image": picture(3),
    "answer": "C",
    "question_type": "multi-choice",
    "query_wo": "Give the letter.",
    "metadata": {"subject": "Plane Geometry", "subfield": "Angle"},
}
MMMU = {
    "id": "validation_Art_Theory_3",
    "question": "Compare <image 1> and <image 2>.",
    "options": "['<image 2>', 'it\\'s 4', 'none']",
    "answer": "B",
    "question_type": "multiple-choice",
    "image_1": picture(4),
    "image_2": picture(5),
}
HALLUSION = {
    **dict.fromkeys(("set_id", "figure_id", "question_id"), "0"),
    "category": "VD",
    "subcategory": "figure",
    "visual_input": "1",
    "question": "Is it red?",
    "gt_answer": "1",
    "image": picture(6),
}
STEP = {
    "ID": "2steps_9",
    "key": "2steps_1",
    "knowledge concept": "Angles",
    "question": "How wide?",
    "option": "A. 30;B. 60; C. No correct answer",
    "answer": "B",
    "image_path": picture(7),
}


def write(file: Path, columns: dict, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), file)
    return file
