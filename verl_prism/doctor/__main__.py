"""python -m verl_prism.doctor: every check of a run, as a list; nothing is started but a Ray that is there is asked."""

import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout

from rich.console import Console
from rich.table import Column, Table

from verl_prism.compose import compose_run
from verl_prism.doctor.cluster import cluster
from verl_prism.doctor.devices import gpus, talk
from verl_prism.doctor.finding import Case, Check, Finding, Level, fault
from verl_prism.doctor.fit import cache_fits, device_fits, host_fits
from verl_prism.doctor.host import (
    environment,
    limits,
    output,
    scratch,
    shared_memory,
    verl_plugin,
    versions,
)
from verl_prism.doctor.models import batches, bucket, inputs, patching, rows
from verl_prism.errors import UserError
from verl_prism.redaction import command_redactor

HELP = """\
python -m verl_prism.doctor stage=… [algorithm=…] [model=…] [hardware=…] [key=value …]

Looks for what would stop the run that python -m verl_prism.main would start with the same words, before it has cost a
GPU hour: packages, environment and limits, GPUs and how processes talk, Ray's resources, models and data, batch sizes,
disk, and an estimate of memory per device at each moment of a step. Each finding says how to mend it. Exit code 0, or 2
where something would stop the run. Nothing is started, nothing is changed.
"""
MARKS: dict[Level, str] = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "fault": "[red]✗[/]"}


def verls_own(case: Case) -> Iterator[Finding]:
    """verl's validation of the whole configuration, which takes some seconds of imports. What it prints is left out."""
    if case.rl:
        with (
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            from verl_prism.trainer.validate import check_with_verl

            check_with_verl(case.config)
    yield Finding("ok", "nothing to object" if case.rl else "not asked in this stage")


CHECKS: dict[str, Check] = {
    "packages": versions,
    "plugin": verl_plugin,
    "environment": environment,
    "limits": limits,
    "shared memory": shared_memory,
    "scratch folder": scratch,
    "GPUs": gpus,
    "processes talk": talk,
    "Ray": cluster,
    "models and data": inputs,
    "image patches": patching,
    "batches": batches,
    "rows": rows,
    "weights to vLLM": bucket,
    "output": output,
    "device memory": device_fits,
    "vLLM's cache": cache_fits,
    "host memory": host_fits,
    "verl": verls_own,
}


def findings(check: Check, case: Case) -> list[Finding]:
    """All that a check has to say; that it is in order, only where nothing else was said. It never raises."""
    found: list[Finding] = []
    try:
        found.extend(check(case))
    except UserError as error:
        found.append(fault(str(error), ""))
    except (
        Exception
    ) as error:  # a broken folder may break a check in any way; another check then says what it is
        found.append(
            fault(
                f"could not be looked at: {type(error).__name__}: {error}",
                "see the other findings first",
            )
        )
    told = [finding for finding in found if finding.level != "ok"]
    several = check is device_fits  # a line for each moment
    return found if several or not told else told


def examine(case: Case) -> dict[str, list[Finding]]:
    return {name: findings(check, case) for name, check in CHECKS.items()}


def show(console: Console, found: dict[str, list[Finding]]) -> None:
    table = Table(
        "", "check", Column("", overflow="fold"), box=None, show_header=False, pad_edge=False
    )
    for name, each in found.items():
        for number, finding in enumerate(each):
            cure = f"\n→ {finding.cure}" if finding.cure else ""
            table.add_row(MARKS[finding.level], "" if number else name, f"{finding.text}{cure}")
    console.print(table)
    levels = [finding.level for each in found.values() for finding in each]
    console.print(f"{levels.count('fault')} faults, {levels.count('warning')} warnings")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, or 2 where something would stop the run."""
    if {"--help", "-h"} & set(arguments):
        sys.stdout.write(HELP)
        return 0
    try:
        config, prism = compose_run(arguments)
    except UserError as error:
        sys.stderr.write(f"verl_prism: {command_redactor(arguments, os.environ)(str(error))}\n")
        return 2
    found = examine(Case(config, prism))
    show(Console(soft_wrap=False, highlight=False), found)
    return 2 if any(finding.level == "fault" for each in found.values() for finding in each) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
