"""Settings of a command: a typed model, filled from a YAML file and `key=value` arguments."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from verl_prism.config import DataFiles, Section
from verl_prism.errors import UserError

CONFIG = "config"  # the argument that names a YAML file


def _parquet(path: Path) -> Path:
    if path.suffix != ".parquet":
        raise ValueError("write a file name that ends with .parquet")
    return path


Output = Annotated[
    Path, AfterValidator(lambda path: path.expanduser().absolute()), AfterValidator(_parquet)
]
ParquetFiles = Annotated[
    DataFiles, Field(description="parquet: a file, a folder, a glob or a list of them")
]
Given = TypeVar("Given", bound=Section)


def parse_settings(kind: type[Given], arguments: Sequence[str]) -> Given:
    """Return the settings that `key=value` arguments give.

    Keys of sections are dotted: `teacher.model=name`. Values are YAML: `splits={train: 0.9}`. A
    text or path stays as it is written, such as `no` or `2024`, but null means none. The argument
    `config=FILE` names a YAML file with the same keys; other arguments override it.

    Raises:
        UserError: names every wrong key or value and what is allowed.
    """
    node: dict[str, Any] = {}
    pairs = [_pair(argument) for argument in arguments]
    types = {key: _types(field.annotation) for key, field in leaves(kind)}
    for key, value in pairs:
        if key == CONFIG:
            node = read_yaml(Path(value).expanduser())
    for key, value in pairs:
        if key != CONFIG:
            _set(node, key, _value(value, types.get(key, set())))
    return validate_settings(kind, node)


def validate_settings(kind: type[Given], node: dict[str, Any], prefix: str = "") -> Given:
    """Return settings from nested dictionaries.

    prefix: where they stand in a file, for messages, such as "steps[2].".

    Raises:
        UserError: names every wrong key or value and what is allowed.
    """
    try:
        return kind.model_validate(node)
    except ValidationError as error:
        known = [name for name, _ in leaves(kind)]
        problems = [_problem(item, known, prefix) for item in error.errors()]
        raise UserError("\n".join(problems)) from None


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: it cannot be read, or holds no mapping.
    """
    try:
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a YAML file: {error}") from None
    if not isinstance(node, dict):
        raise UserError(f"{file}: write keys and values, such as source: questions.jsonl")
    return node


def leaves(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name of each setting, also of nested sections, with its field."""
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from leaves(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def describe(kind: type[BaseModel]) -> str:
    """Return one line per setting for `--help`: its name, default and description."""
    rows = []
    for name, field in leaves(kind):
        required = field.default is PydanticUndefined and field.default_factory is None
        default = "required" if required else _shown(field.get_default(call_default_factory=True))
        rows.append((f"{name}=", default, field.description or ""))
    width = max(len(name) for name, _, _ in rows)
    lines = []
    for name, default, description in rows:
        lines.append(f"  {name:<{width}}  {description} [{default}]")
    return "\n".join(lines)


def _shown(default: Any) -> str:
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ", ".join(map(str, default)) or "none"
    return str(default)


def _pair(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals or not key:
        raise UserError(f"{argument}: write key=value")
    return key, value


def _types(annotation: Any) -> set[Any]:
    """Return the types that a setting can have, without those inside lists and mappings."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _types(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return {each for part in get_args(annotation) for each in _types(part)}
    return {origin or annotation}


def _value(text: str, types: set[Any]) -> Any:
    """Return the value of a setting with these types; they are none if it is not known."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # such as a path with a colon or a bracket
    kind = tuple if isinstance(value, list) else type(value)
    if value is not None and kind not in types and types & {str, Path}:
        return text
    # YAML reads 1e-5 as a text, and a date as a date; pydantic reads numbers from texts itself.
    return value if isinstance(value, dict | list | bool | int | float | None) else text


def _set(node: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise UserError(f"{key}: {section} is not a section")
    node[name] = value


def _problem(item: ErrorDetails, known: list[str], prefix: str) -> str:
    key = ".".join(map(str, item["loc"]))
    match item["type"]:
        case "missing":
            return f"{prefix}{key} is not set; write {key}=..."
        case "extra_forbidden":
            similar = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {similar[0]}?" if similar else f"known: {', '.join(known)}"
            return f"unknown key {prefix}{key}; {hint}"
        case "value_error":
            return f"{prefix}{key or 'settings'}: {item['ctx']['error']}"
    message = item["msg"]
    hint = "; put it in quotes" if item["type"] == "string_type" else ""
    return f"{prefix}{key}={item['input']}: {message[0].lower()}{message[1:]}{hint}"
