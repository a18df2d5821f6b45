"""Do the columns of a parquet file have the names and types that a benchmark publishes?"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from verl_prism.errors import UserError

Columns = Mapping[str, str]  # `name` or `name.field`, and a key of KINDS

_types = pa.types


def _is_text(kind: pa.DataType) -> bool:
    return _types.is_string(kind) or _types.is_large_string(kind)


def _is_label(kind: pa.DataType) -> bool:
    return _is_text(kind) or _types.is_integer(kind)


def _is_texts(kind: pa.DataType) -> bool:
    is_list = _types.is_list(kind) or _types.is_large_list(kind)
    return is_list and _is_text(kind.value_type)


def _is_image(kind: pa.DataType) -> bool:
    if not _types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    content = kind.field("bytes").type
    return _types.is_binary(content) or _types.is_large_binary(content)


def _is_image_or_text(kind: pa.DataType) -> bool:
    return _is_image(kind) or _is_text(kind) or _types.is_null(kind)


KINDS: dict[str, Callable[[pa.DataType], bool]] = {
    "text": _is_text,
    "text or whole number": _is_label,
    "list of texts": _is_texts,
    "image (struct with bytes)": _is_image,
    "image (struct with bytes), text or null": _is_image_or_text,
}
TEXT, LABEL, TEXTS, IMAGE, IMAGE_OR_TEXT = KINDS


def fitting_columns(file: Path, schema: pa.Schema, forms: Sequence[Columns]) -> Columns:
    """Return the first of `forms` whose columns the file has.

    Raises:
        UserError: a column is missing or has another type.
    """
    for form in forms:
        if all(_column_type(schema, name) is not None for name in form):
            _check_types(file, schema, form)
            return form
    missing = " or ".join(_missing(schema, form) for form in forms)
    raise UserError(
        f"{file}: no column {missing}; it has {', '.join(schema.names)}. "
        "Is it a file of this benchmark?"
    )


def top_level(columns: Columns) -> list[str]:
    """Return the names of the columns without their fields."""
    return list(dict.fromkeys(name.split(".")[0] for name in columns))


def _check_types(file: Path, schema: pa.Schema, columns: Columns) -> None:
    for name, wanted in columns.items():
        kind = _column_type(schema, name)
        if not KINDS[wanted](kind):
            raise UserError(
                f"{file}: column {name!r} is {kind}, but should be {wanted}; "
                "convert the column, or download the published file again"
            )


def _missing(schema: pa.Schema, columns: Columns) -> str:
    names = [name for name in columns if _column_type(schema, name) is None]
    return ", ".join(map(repr, names))


def _column_type(schema: pa.Schema, path: str) -> pa.DataType | None:
    """Return the type of a column or of one of its fields; None if it is missing."""
    name, *fields = path.split(".")
    if name not in schema.names:
        return None
    kind = schema.field(name).type
    for field in fields:
        if not _types.is_struct(kind) or kind.get_field_index(field) < 0:
            return None
        kind = kind.field(field).type
    return kind
