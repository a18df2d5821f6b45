"""Checks of the columns of a parquet file and of their types, before any row is read."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_prism.data.rows import convert_command
from verl_prism.data.schema import COLUMNS
from verl_prism.errors import UserError

OPTIONAL = ("images",)  # rows of a file without this column have no images
MESSAGES_FORM = '[{"role": "user", "content": "<image>\\nWhat is …?"}]'
DISTILLED = ("messages", "teacher_response")
CONVERTED = ("messages", "prompt", "images")  # whose other forms `convert` reads


def check_columns(key: str, path: Path, columns: Iterable[str]) -> None:
    """Check that a parquet file has rows, and these columns with usable types."""
    try:
        schema = pq.read_schema(path)
        rows = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{key}={path}: not a parquet file, or a damaged one ({error})") from None
    columns = [column for column in columns if column in schema.names or column not in OPTIONAL]
    missing = [column for column in columns if column not in schema.names]
    if missing:
        raise UserError(
            f"{key}={path}: no column {', '.join(missing)}; it has {', '.join(schema.names)}"
            + _missing_hint(path, missing, schema.names)
        )
    for column, problem in type_problems(schema, [*columns, "extra_info"]):
        raise UserError(f"{key}={path}: {problem}{convert_hint(path, [column])}")
    if rows == 0:
        raise UserError(f"{key}={path}: no rows")


def _missing_hint(path: Path, missing: Sequence[str], names: Sequence[str]) -> str:
    """Return the command that adds missing columns to a file, if there is one.

    Columns that we do not know may hold demonstrations in another form.
    """
    if "prompt" in names and set(names) <= set(COLUMNS):
        if set(missing) & set(DISTILLED):
            return (
                "; these are questions: python -m verl_prism.data distill adds a teacher's answers"
            )
        if missing == ["student_responses"]:
            return "; python -m verl_prism.data sample adds the policy's responses"
    if "reward_model" in missing:
        return "; reward_model.ground_truth holds the gold answers"
    return convert_hint(path, missing)


def convert_hint(path: Path, columns: Iterable[str]) -> str:
    """Return the command that converts a file, if these columns of it may be in another form."""
    if not set(columns) & set(CONVERTED):
        return ""
    return f"; {convert_command(path)} converts files in other forms"


def type_problems(schema: pa.Schema, columns: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield column and text of what is wrong with types; columns that are missing are left out."""
    for column in columns:
        if column in schema.names:
            for problem in _type_problems(column, schema.field(column).type):
                yield column, problem


def _type_problems(column: str, kind: pa.DataType) -> Iterator[str]:
    match column:
        case "messages" | "prompt":
            yield from _messages_problems(column, kind)
        case "images":
            yield from _images_problems(kind)
        case "reward_model":
            if not _is(kind, pa.types.is_struct) or kind.get_field_index("ground_truth") < 0:
                yield (
                    f"reward_model is {kind}; it should be a struct, such as "
                    '{"style": "rule", "ground_truth": "9"}'
                )
        case "extra_info":
            if not _is(kind, pa.types.is_struct):
                yield f'extra_info is {kind}; it should be a struct, such as {{"index": 0}}'
        case "id" | "data_source" | "teacher_response":
            if not _is(kind, _is_text):
                yield f"{column} is {kind}; it should be a string"
        case "student_responses":
            item = _item(kind)
            if not pa.types.is_null(kind) and (item is None or not _is(item, _is_text)):
                yield f"student_responses is {kind}; it should be a list of strings"


def _messages_problems(column: str, kind: pa.DataType) -> Iterator[str]:
    item = _item(kind)
    names = [item.field(index).name for index in range(item.num_fields)] if item else []
    if {"from", "value"} <= set(names):
        yield f"{column} holds ShareGPT rows ({{from, value}}), not {{role, content}}"
    elif item is None or not {"role", "content"} <= set(names):
        yield (
            f"{column} is {kind}; it should be a list of {{role, content}}, such as {MESSAGES_FORM}"
        )
    else:
        content = item.field("content").type
        if not _is_text(content) and not pa.types.is_null(content):
            yield (
                f"{column}: content is {content}; it should be a string, with <image> where an "
                "image belongs"
            )


def _images_problems(kind: pa.DataType) -> Iterator[str]:
    if pa.types.is_null(kind):
        return
    item = _item(kind)
    form = 'it should be a list of {bytes}, such as [{"bytes": open(path, "rb").read()}]'
    if item is None:
        yield f"images is {kind}; {form}"
    elif pa.types.is_null(item):
        return
    elif _is_text(item):
        yield f"images holds paths; {form}"
    elif not pa.types.is_struct(item) or item.get_field_index("bytes") < 0:
        yield f"images holds {item}; {form}"
    elif not _is(item.field("bytes").type, _is_binary):
        yield f"images holds bytes as {item.field('bytes').type}; {form}"


def _item(kind: pa.DataType) -> pa.DataType | None:
    """Return the type of a list's items, None if it is not a list."""
    return kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is(kind: pa.DataType, wanted: object) -> bool:
    return pa.types.is_null(kind) or wanted(kind)  # type: ignore[operator]
