"""Write docs/config-reference.md: every key under `prism` with its default, values and meaning.

python scripts/config_reference.py

Keys, defaults and meanings are those of trainer_configs/, where a comment is above its key. The
allowed values are the types in verl_prism/config.py.
"""

import html
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from verl_prism.config import AbsolutePath, DataFiles, ModelPath, Prism, Section, UserFunction

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "config-reference.md"
CONFIGS = ROOT / "trainer_configs"
GROUPS = ("stage", "algorithm", "hardware", "model", "discriminator")
NAMES_OF_PRESETS = ("prism.stage", "prism.model.name", "prism.algorithm.name")
NO_DEFAULT = "???"

INTRODUCTION = """\
# All configuration keys

`python scripts/config_reference.py` writes this page from [trainer_configs](../trainer_configs) and
[config.py](../verl_prism/config.py). [configuration.md](configuration.md) explains how a
configuration is composed.

Each key is followed by its allowed values, by its default in
[prism.yaml](../trainer_configs/prism.yaml), and by the values that presets set instead. If several
presets set a key, the last one applies, in the order stage, algorithm, hardware, model,
discriminator. The defaults under `prism.algorithm` are those of `algorithm=grpo`. `${…}` is the
value of another key.
"""

# Keys that the comment of the key before them is about, too.
SHARE_A_COMMENT = (
    "prism.data.heldout",
    "prism.data.max_response_tokens",
    "prism.hardware.ray_gpus",
    "prism.optim.warmup_ratio",
    "prism.discriminator.max_reasoning_tokens",
    "prism.align.reasoning_weight",
    "prism.reward.format_weight",
    "prism.algorithm.max_batches",
    "prism.algorithm.warmup_ratio",
    "prism.algorithm.validation_top_p",
)
# A list, because constraints of pydantic cannot be hashed.
NAMES_OF_TYPES: list[tuple[Any, str]] = [
    (bool, "`true` or `false`"),
    (str, "text"),
    (int, "integer"),
    (float, "number"),
    (AbsolutePath, "path"),
    (ModelPath, "folder or hub id"),
    (DataFiles, "file, folder or glob, or a list of them"),
    (UserFunction, "`path/to/file.py:function`"),
    # `Prism` accepts null, and then evaluates prism.policy.
    (dict[str, ModelPath], "`{name: folder or hub id, …}` or `null`"),
]
PAGE_OF_DOCS = re.compile(r"docs/([\w-]+\.md)")
CODE = re.compile(
    r"(?<![\w/`])(?:prism(?:\.\w+)+(?:=\w+)?|\w+=(?:\d[\w.]*-\d+|[\w.]*\w)|path/to/file\.py:\w+)"
)


Values = dict[str, list[str]]  # value -> names of the presets that set it


@dataclass(frozen=True)
class Entry:
    """A key of a YAML file.

    value: as the file writes it; None for a section.
    notes: paragraphs of the comment above the key that are about the keys that follow.
    text: last paragraph of the comment above the key, "" without a comment.
    """

    key: str
    value: str | None
    notes: tuple[str, ...]
    text: str


@cache
def entries(file: Path) -> tuple[Entry, ...]:
    """Return the keys of a file that are under `prism`, in the order of the file."""
    source = file.read_text(encoding="utf-8")
    package = re.match(r"# @package ([\w.]+)\n", source)
    prefix = "" if package is None or package[1] == "_global_" else package[1]
    found = walk(yaml.compose(source), prefix, source)
    return tuple(entry for entry in found if entry.key.startswith("prism."))


def walk(node: yaml.MappingNode, prefix: str, source: str) -> Iterator[Entry]:
    """Yield the keys of a mapping, and those below each of them."""
    for name, value in node.value:
        key = f"{prefix}.{name.value}" if prefix else name.value
        *notes, text = comment_above(source, name.start_mark.line)
        if isinstance(value, yaml.MappingNode):
            yield Entry(key, None, tuple(notes), text)
            yield from walk(value, key, source)
        else:
            written = source[value.start_mark.index : value.end_mark.index]
            yield Entry(key, written, tuple(notes), text)


def comment_above(source: str, line: int) -> list[str]:
    """Return the paragraphs of the comment right above a line; one that is "" without a comment.

    The comment at the top of a file is about the file.
    """
    lines = source.splitlines()
    start = line
    while start > 0 and lines[start - 1].lstrip().startswith("#"):
        start -= 1
    if start == 0:
        return [""]
    texts = [text.strip().removeprefix("#").strip() for text in lines[start:line]]
    paragraphs = "\n".join(texts).split("\n\n")
    return [" ".join(paragraph.split()) for paragraph in paragraphs]


def values_of(group: str, name: str) -> dict[str, str]:
    """Return what a preset sets under `prism`, with what the preset that it builds on sets."""
    file = CONFIGS / group / f"{name}.yaml"
    values: dict[str, str] = {}
    for base in yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", []):
        if not base.startswith("/"):
            values |= values_of(group, base)
    for entry in entries(file):
        if entry.value is not None:
            values[entry.key] = entry.value
    return values


def preset_values() -> dict[str, Values]:
    """Return for each key what presets set, each value with the presets that set it."""
    found: dict[str, Values] = defaultdict(lambda: defaultdict(list))
    for group in GROUPS:
        for file in sorted((CONFIGS / group).glob("*.yaml")):
            for key, value in values_of(group, file.stem).items():
                if key not in NAMES_OF_PRESETS:
                    found[key][value].append(f"{group}={file.stem}")
    return found


def section_class(key: str) -> type[Section]:
    """Return the class of a section, e.g. of `prism.reward.judge`."""
    kind: type[Section] = Prism
    for name in key.split(".")[1:]:
        kind = kind.model_fields[name].annotation
    return kind


def allowed_values(key: str) -> str:
    """Return what the type of a key allows, in words."""
    section, _, name = key.rpartition(".")
    return words(get_type_hints(section_class(section), include_extras=True)[name])


def words(kind: Any) -> str:
    """Return what a type allows, in words."""
    for known, name in NAMES_OF_TYPES:
        if kind == known:
            return name
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return in_words([f"`{value}`" for value in arguments])
    if origin in (Union, UnionType):
        names = [words(each) for each in arguments if each is not type(None)]
        return in_words([*names, "`null`"])
    if origin is list:
        return f"list of {words(arguments[0])}"
    if origin is Annotated:
        return f"{words(arguments[0])} {' and '.join(limits(arguments[1:]))}".rstrip()
    raise TypeError(f"no words for the type {kind}")


def limits(constraints: tuple[Any, ...]) -> list[str]:
    """Return the limits of a number, in words."""
    found = []
    for constraint in constraints:
        match constraint:
            case FieldInfo():
                found += limits(tuple(constraint.metadata))
            case Gt():
                found.append(f"> {constraint.gt:g}")
            case Ge():
                found.append(f"≥ {constraint.ge:g}")
            case Lt():
                found.append(f"< {constraint.lt:g}")
            case Le():
                found.append(f"≤ {constraint.le:g}")
    return found


def in_words(names: list[str]) -> str:
    """Return "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def all_entries() -> list[Entry]:
    """Return the keys of prism.yaml, and those of the algorithms, which presets set."""
    algorithm = Entry("prism.algorithm", None, (), "")
    return [
        *entries(CONFIGS / "prism.yaml"),
        algorithm,
        *entries(CONFIGS / "algorithm" / "grpo.yaml"),
    ]


def page() -> str:
    """Return the text of the page."""
    sections = {"prism": Entry("prism", None, (), "")}
    members: dict[str, list[Entry]] = defaultdict(list)
    for entry in all_entries():
        if entry.value is None:
            sections[entry.key] = entry
        else:
            members[entry.key.rpartition(".")[0]].append(entry)
    values = preset_values()
    parts = [INTRODUCTION]
    for key, section in sections.items():
        parts += [f"## {key}\n", f"{section_class(key).__doc__}\n"]
        if section.text:
            parts.append(f"{formatted(section.text)}\n")
        parts += lists(members[key], values)
    return "\n".join(parts)


def lists(members: list[Entry], values: dict[str, Values]) -> Iterator[str]:
    """Yield the lists of a section's keys, and the notes between them."""
    items: list[str] = []
    for group in groups(members):
        notes = group[0].notes
        if notes and items:
            yield "\n".join(items) + "\n"
            items = []
        for note in notes:
            yield f"{formatted(note)}\n"
        items.append(item(group, values))
    yield "\n".join(items) + "\n"


def groups(members: list[Entry]) -> list[list[Entry]]:
    """Return the keys of a section; those that share a comment are together."""
    found: list[list[Entry]] = []
    for entry in members:
        if entry.key in SHARE_A_COMMENT:
            found[-1].append(entry)
        else:
            found.append([entry])
    return found


def item(group: list[Entry], values: dict[str, Values]) -> str:
    """Return the item of keys that share a comment: values and defaults of each, then the text."""
    lines = []
    for entry in group:
        defaults = defaults_of(entry, values[entry.key])
        lines.append(f"**`{entry.key}`**: {allowed_values(entry.key)}; {defaults}")
    if group[0].text:
        lines.append(formatted(group[0].text))
    return "* " + "<br>\n  ".join(lines)


def defaults_of(entry: Entry, values: Values) -> str:
    """Return the default of a key, and the values that presets set.

    A preset that sets the default is left out, unless presets of another group set the key too.
    """
    default = "no default" if entry.value == NO_DEFAULT else f"default `{entry.value}`"
    found = [default]
    groups_of_presets = {name.partition("=")[0] for names in values.values() for name in names}
    for value, names in values.items():
        if value != entry.value or len(groups_of_presets) > 1:
            found.append(f"`{value}` with {in_words([f'`{name}`' for name in names])}")
    return ", ".join(found)


def formatted(comment: str) -> str:
    """Return a comment as Markdown: keys and settings as code, pages of docs/ as links."""
    text = html.escape(comment, quote=False).replace("*", r"\*")
    text = CODE.sub(lambda match: f"`{match[0]}`", text)
    return PAGE_OF_DOCS.sub(r"[\1](\1)", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
