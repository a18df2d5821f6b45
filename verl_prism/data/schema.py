"""The columns of the parquet files, one row per question or demonstration.

A file with all columns serves every stage; each stage reads only the columns that it needs.
`docs/data.md` describes each column. Each `<image>` in a message is a placeholder for the next item
of `images`. Stage align uses `reward_model` only with `prism.align.accuracy_weight`, but verl's
reward loop requires the column.
"""

import base64
from collections.abc import Iterable

import pyarrow as pa

from verl_prism.config import Prism, Stage

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
IMAGES = pa.list_(pa.struct({"bytes": pa.binary()}))
REWARD_MODEL = pa.struct({"style": pa.string(), "ground_truth": pa.string()})
EXTRA_INFO = pa.struct({"index": pa.int64(), "equivalent_answers": pa.list_(pa.string())})

RESPONSE = "<caption>A 3 and a 4.</caption><think>3 + 4 = 7</think><answer>7</answer>"
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)

COLUMNS: dict[str, pa.DataType] = {
    "id": pa.string(),  # optional: the row's name in messages and journals, unique
    "prompt": MESSAGES,
    "images": IMAGES,  # optional: rows of a file without it have no images
    "data_source": pa.string(),
    "reward_model": REWARD_MODEL,
    "extra_info": EXTRA_INFO,  # optional: index, further gold answers, and facts about the task
    "teacher_response": pa.string(),  # a whole response
    "messages": MESSAGES,  # the prompt and a response, as a demonstration
    "student_responses": pa.list_(pa.string()),  # optional: the policy's own responses
}

EXAMPLE: dict[str, object] = {
    "id": "question-17",
    "prompt": [
        {"role": "system", "content": "Reply with <caption>, <think> and <answer>."},
        {"role": "user", "content": "<image>\nWhat is the sum of the two digits?"},
    ],
    # the content of an image file, of which this is the smallest: a PNG of one white pixel
    "images": [{"bytes": base64.b64decode(PIXEL)}],
    "data_source": "digits",
    "reward_model": {"style": "rule", "ground_truth": "7"},
    "extra_info": {"index": 17, "equivalent_answers": ["seven"]},
    "teacher_response": RESPONSE,
    "messages": [
        {"role": "system", "content": "Reply with <caption>, <think> and <answer>."},
        {"role": "user", "content": "<image>\nWhat is the sum of the two digits?"},
        {"role": "assistant", "content": RESPONSE},
    ],
    "student_responses": ["<caption>A 3.</caption><think>3</think><answer>3</answer>"],
}
"""A row with all columns, which serves every stage."""

_QUESTION = ("prompt", "images", "data_source", "reward_model")

TRAIN_COLUMNS: dict[Stage, tuple[str, ...]] = {
    "sft": ("messages", "images"),
    "warmup": ("prompt", "images", "teacher_response"),
    "align": (*_QUESTION, "teacher_response"),
    "rlvr": _QUESTION,
    "dpo": ("prompt", "images", "teacher_response", "student_responses"),
    "sample": ("prompt", "images"),
    "eval": (),
}
HELDOUT_COLUMNS: dict[Stage, tuple[str, ...]] = {
    "sft": (),
    "warmup": (),
    "align": _QUESTION,
    "rlvr": _QUESTION,
    "dpo": (),
    "sample": (),
    "eval": _QUESTION,
}


def stage_columns(prism: Prism, split: str) -> tuple[str, ...]:
    """Return the columns that the stage of `prism` reads of `train` or `heldout`; none if none."""
    if split == "heldout":
        return HELDOUT_COLUMNS[prism.stage]
    columns = TRAIN_COLUMNS[prism.stage]
    if prism.stage == "warmup" and prism.warmup.responses == "file":
        return (*columns, "student_responses")
    return columns


def grades_answers(prism: Prism) -> bool:
    """Return whether the stage of `prism` compares answers with gold answers."""
    mixed = prism.stage == "align" and prism.align.accuracy_weight > 0
    return mixed or prism.stage in ("rlvr", "eval")


def schema(columns: Iterable[str]) -> pa.Schema:
    """Return the schema of a file with these columns."""
    return pa.schema([(name, COLUMNS[name]) for name in columns])
