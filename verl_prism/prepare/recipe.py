"""Run all steps of a recipe file, and write a data card with which the data can be made again.

python -m verl_prism.data recipe file=recipe.yaml

A recipe names the commands in order, each with its settings. Paths are relative to its folder.

  name: geometry
  steps:
    - convert: {source: raw.jsonl, output: questions.parquet}
    - split: {source: questions.parquet, output: splits, splits: {train: 0.9, heldout: 0.1}}
    - distill: {source: splits/train.parquet, output: demonstrations.parquet, config: teacher.yaml}

A step whose settings, inputs and outputs are unchanged since its last run is skipped. The card,
DATA_CARD.md and data_card.json beside the recipe, has each step's settings, counts, rejects by
reason and costs, the SHA-256 of each file, and versions. A step that finds problems in the data, as
check does, stops the recipe, unless it writes a clean copy (fix).
"""

import contextlib
import glob
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from verl_prism.config import AbsolutePath, Section, flatten
from verl_prism.errors import UserError
from verl_prism.files import write_atomically
from verl_prism.prepare.data_card import CARD, card_markdown, file_digest, versions
from verl_prism.prepare.report import Report
from verl_prism.prepare.settings import CONFIG, read_yaml, validate_settings

STATE = "data_card.json"
# Settings that name what a step writes. The others that name files name what it reads.
WRITTEN = ("output", "folder", "fix", "report", "judge.cache")
PREFIXES = ("strip_prefix", "add_prefix")  # parts of paths in the data; no file is read there
FUNCTION = re.compile(r":[^\W\d]\w*\Z")  # ends path/to/file.py:function


class Settings(Section):
    """Settings of `recipe`."""

    file: AbsolutePath = Field(description="YAML file of the recipe")
    again: bool = Field(False, description="run all steps, also those that are unchanged")


class Recipe(Section):
    """The content of a recipe file."""

    name: str
    steps: tuple[dict[str, dict[str, Any]], ...] = Field(min_length=1)


def run(settings: Settings) -> Report:
    """Run the steps that are not done yet, and write the data card.

    Raises:
        UserError: a mistake in the recipe or in a step; the message names the step.
    """
    recipe = validate_settings(Recipe, read_yaml(settings.file))
    folder = settings.file.parent
    with contextlib.chdir(folder):
        steps = list(_parse(recipe))
        done = {} if settings.again else _read_state(folder / STATE)
        card: dict[str, Any] = {"name": recipe.name, "versions": versions(), "steps": []}
        for number, (command, step) in enumerate(steps):
            record = _run_step(f"steps[{number}]", command, step, done.get(number))
            card["steps"].append(record)
            _write_card(folder, card)
            if _stops(record):
                place = f"steps[{number}].{command}"
                problems = tuple(f"{place}: {text}" for text in record["problems"])
                return Report({"steps done": number}, outputs=(folder / CARD,), problems=problems)
    return Report({"steps done": len(steps)}, outputs=(folder / CARD, folder / STATE))


def input_files(node: dict[str, Any]) -> list[Path]:
    """Return the files that settings name: files, and those of folders and globs.

    Any text that names a file counts, such as a `prompt`. A relative one names a folder or a glob
    only as `source`: elsewhere it is more often a word, such as the name of a split.

    node: the settings of a step.
    """
    found: list[Path] = []
    for key, value in flatten(node):
        if isinstance(value, str) and key not in (*WRITTEN, *PREFIXES):
            several = key == "source" or Path(value).is_absolute()
            found += _files_at(value, several)
    return found


def _parse(recipe: Recipe) -> Iterator[tuple[str, Section]]:
    """Yield each step's command and settings. All of them are checked before the first one runs."""
    from verl_prism.prepare.command import COMMANDS

    for number, step in enumerate(recipe.steps):
        if len(step) != 1:
            raise UserError(f"steps[{number}]: write one command, such as convert: {{source: …}}")
        command, node = next(iter(step.items()))
        if command not in COMMANDS or command == "recipe":
            known = ", ".join(name for name in COMMANDS if name != "recipe")
            raise UserError(f"steps[{number}]: unknown command {command}; use {known}")
        kind, _, _ = COMMANDS[command].load()
        prefix = f"steps[{number}].{command}."
        yield command, validate_settings(kind, _with_config(node or {}), prefix)


def _with_config(node: dict[str, Any]) -> dict[str, Any]:
    """Add the keys of the YAML file that the key `config` names."""
    if CONFIG not in node:
        return node
    own = {key: value for key, value in node.items() if key != CONFIG}
    return read_yaml(Path(node[CONFIG])) | own


def _run_step(
    place: str, command: str, settings: Section, before: dict[str, Any] | None
) -> dict[str, Any]:
    """Run a step, unless it is unchanged; return its record for the card."""
    from verl_prism.prepare.command import COMMANDS

    node = settings.model_dump(mode="json")
    inputs = _digests(input_files(node))
    if before and _is_done(before, command, node, inputs):
        sys.stdout.write(f"{place} {command}: unchanged\n")
        return before
    sys.stdout.write(f"{place} {command}\n")
    start = datetime.now(UTC)
    try:
        report = COMMANDS[command].load()[1](settings)
    except UserError as error:
        raise UserError(f"{place}.{command}: {error}") from None
    for line in report.lines():
        sys.stdout.write(f"  {line}\n")
    return {
        "command": command,
        "settings": node,
        "started": start.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - start).total_seconds(), 1),
        "inputs": inputs,
        "counts": dict(report.counts),
        "rejects": dict(report.rejects),
        "figures": dict(report.figures),
        "problems": list(report.problems),
        "outputs": _digests(report.outputs),
    }


def _is_done(
    before: dict[str, Any], command: str, node: dict[str, Any], inputs: dict[str, str]
) -> bool:
    same = (before["command"], before["settings"], before["inputs"]) == (command, node, inputs)
    if not same or _stops(before):
        return False
    files = [Path(name) for name in before["outputs"]]
    return all(file.is_file() for file in files) and _digests(files) == before["outputs"]


def _stops(record: dict[str, Any]) -> bool:
    """Return whether problems end the recipe. A clean copy (`fix` of check) is without them."""
    return bool(record["problems"]) and not record["settings"].get("fix")


def _files_at(name: str, several: bool) -> list[Path]:
    """Return the files that a text names, none if it is no path.

    several: whether it can be a folder or a glob.
    """
    try:
        path = Path(name).expanduser().absolute()
        for file in (path, Path(FUNCTION.sub("", str(path)))):
            if file.is_file():
                return [file]
        return _files_below(path) if several else []
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, ~ of an unknown user
        return []


def _files_below(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]


def _digests(files: Any) -> dict[str, str]:
    return {str(file): file_digest(Path(file)) for file in files if Path(file).is_file()}


def _read_state(file: Path) -> dict[int, dict[str, Any]]:
    if not file.is_file():
        return {}
    return dict(enumerate(json.loads(file.read_text(encoding="utf-8"))["steps"]))


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    write_atomically(folder / STATE, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / CARD, card_markdown(card))
