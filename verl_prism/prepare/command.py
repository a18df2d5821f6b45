"""Command line: `python -m verl_prism.data COMMAND [key=value ...]`."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from verl_prism.errors import UserError, write_traceback
from verl_prism.prepare.report import Report
from verl_prism.prepare.settings import describe, parse_settings
from verl_prism.redaction import command_redactor

PROGRAM = "python -m verl_prism.data"


@dataclass(frozen=True)
class Command:
    """A command. `module` has `Settings` and `run(settings) -> Report`; its docstring is the help.

    Modules are imported when their command is called, so that `--help` is quick.
    """

    module: str
    summary: str

    def load(self) -> tuple[type[Any], Callable[[Any], Report], str]:
        """Return the type of its settings, its function and its help."""
        module = importlib.import_module(f"verl_prism.prepare.{self.module}")
        return module.Settings, module.run, module.__doc__ or ""


COMMANDS: dict[str, Command] = {
    "convert": Command("convert", "turn questions or demonstrations in another form into parquet"),
    "check": Command("check", "check every row, and list all that is wrong"),
    "split": Command("split", "divide rows into splits that share no image and no question"),
    "estimate": Command("estimate", "estimate the costs and the time of distill from a sample"),
    "distill": Command("distill", "ask a teacher to answer the questions"),
    "sample": Command("sample", "let the policy answer each question several times"),
    "score": Command(
        "score", "score the responses with a discriminator, for filters and best of n"
    ),
    "filter": Command("filter", "keep the questions that the policy solves sometimes"),
    "pairs": Command("pairs", "choose responses that pair fairly with the teacher's"),
    "recipe": Command("recipe", "run all steps of a recipe file, and write a data card"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    0: done. 1: the data is wrong, or the command failed. 2: a mistake in the input. 130:
    interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else "--help"
    if name in ("--help", "-h"):
        sys.stdout.write(_help())
        return 0
    redact = command_redactor(given, os.environ)
    try:
        return _run(name, given[1:])
    except UserError as error:
        sys.stderr.write(f"verl_prism.data: {redact(str(error))}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("verl_prism.data: interrupted\n")
        return 130
    except Exception as error:
        file = write_traceback(redact(traceback.format_exc()))
        kind = type(error).__name__
        sys.stderr.write(f"verl_prism.data: {kind}: {redact(str(error))}; traceback in {file}\n")
        return 1


def run_command(name: str, arguments: Sequence[str]) -> Report:
    """Run a command with `key=value` arguments and return its report.

    Raises:
        UserError: a mistake in the command, its settings or the data.
    """
    settings, run, _ = _command(name).load()
    return run(parse_settings(settings, arguments))


def _run(name: str, arguments: Sequence[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        settings, _, text = _command(name).load()
        sys.stdout.write(f"{PROGRAM} {name} key=value ...\n\n{text.strip()}\n\n")
        sys.stdout.write(f"settings (also in a YAML file: config=FILE)\n{describe(settings)}\n")
        return 0
    report = run_command(name, arguments)
    for line in report.lines():
        sys.stdout.write(f"{line}\n")
    for problem in report.problems:
        sys.stderr.write(f"verl_prism.data: {problem}\n")
    return 1 if report.problems else 0


def _command(name: str) -> Command:
    if name not in COMMANDS:
        raise UserError(f"unknown command {name}; use {', '.join(COMMANDS)}")
    return COMMANDS[name]


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"{PROGRAM} COMMAND key=value ...", "", "Make data sets for the stages.", ""]
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", f"{PROGRAM} COMMAND --help shows the settings of a command.", ""]
    return "\n".join(lines)
