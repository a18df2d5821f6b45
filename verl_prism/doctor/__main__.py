"""Check a run before it starts: python -m verl_prism.doctor stage=… [key=value …].

python -m verl_prism.doctor --gpu-check checks the code on a GPU, as verl_prism.gpu_check does.
"""

import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from verl_prism.compose import compose_run
from verl_prism.doctor.devices import check_communication, check_gpus
from verl_prism.doctor.finding import Case, Check, Finding, Level, error, note, ok
from verl_prism.doctor.host import (
    check_environment,
    check_limits,
    check_output,
    check_packages,
    check_plugin,
    check_scratch_folder,
    check_shared_memory,
)
from verl_prism.doctor.inputs import (
    check_batches,
    check_image_patches,
    check_models_and_data,
    check_rows,
    check_weight_bucket,
)
from verl_prism.doctor.memory_checks import (
    check_device_memory,
    check_host_memory,
    check_vllm_cache,
)
from verl_prism.doctor.ray_resources import check_ray
from verl_prism.doctor.time_checks import check_time
from verl_prism.errors import UserError
from verl_prism.gpu_check.__main__ import main as gpu_check
from verl_prism.hub import with_local_models
from verl_prism.redaction import command_redactor

HELP = """\
usage: python -m verl_prism.doctor stage=… [key=value …] [--response-tokens=N]
       python -m verl_prism.doctor --gpu-check [--help] [option …]

Checks a run before it costs GPU time. It takes the same arguments as python -m verl_prism.main.
It starts no stage and changes no file; a running Ray (prism.hardware.ray_address) is only queried.

It checks
  packages, environment variables, limits, shared memory and disk space
  GPUs, communication between processes, and Ray's resources
  models, data, batch sizes, and verl's own validation of the configuration
  estimated memory per device in each phase of a step, and host memory

It also estimates the GPU hours of the stage. --response-tokens=N is the mean length of the
policy's responses. The default is that of the teacher's if the stage reads them, else 2,000.

Each problem comes with a fix. On a host without a GPU, such as a login node, problems of the host
itself are only noted if the run needs GPUs.

--gpu-check runs python -m verl_prism.gpu_check instead: it checks and times the discriminator, and
then every stage, on one GPU, from random weights.

example:
  python -m verl_prism.doctor stage=align model=qwen3_vl_4b hardware=8xh100 prism.root=runs/4b

exit codes: 0 no errors (there may be warnings), 2 errors
"""
GPU_CHECK = "--gpu-check"
RESPONSE_TOKENS = "--response-tokens="
EXIT_ERRORS = 2
MARKS: dict[Level, str] = {
    "ok": "[green]✓[/]",
    "note": "[blue]i[/]",
    "warning": "[yellow]![/]",
    "error": "[red]✗[/]",
}


def check_verl_config(case: Case) -> Iterator[Finding]:
    """Run verl's own validation of the configuration, and hide what it prints."""
    if not case.on_ray:
        yield ok("not used in this stage")
        return
    with (
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),
        warnings.catch_warnings(action="ignore"),
    ):
        from verl_prism.trainer.validate import check_with_verl

        check_with_verl(case.config)
    yield ok("configuration accepted")


CHECKS: dict[str, Check] = {
    "packages": check_packages,
    "plugin": check_plugin,
    "environment": check_environment,
    "limits": check_limits,
    "shared memory": check_shared_memory,
    "scratch folder": check_scratch_folder,
    "GPUs": check_gpus,
    "communication": check_communication,
    "Ray": check_ray,
    "models and data": check_models_and_data,
    "image patches": check_image_patches,
    "batches": check_batches,
    "rows": check_rows,
    "weight bucket": check_weight_bucket,
    "output": check_output,
    "device memory": check_device_memory,
    "vLLM's cache": check_vllm_cache,
    "host memory": check_host_memory,
    "time": check_time,
    "verl": check_verl_config,
}


# These look at the host that the doctor runs on.
OF_THIS_HOST = (
    check_limits,
    check_shared_memory,
    check_scratch_folder,
    check_gpus,
    check_communication,
    check_ray,
    check_host_memory,
)

# These look into the models' folders.
OF_MODELS = (
    check_image_patches,
    check_weight_bucket,
    check_output,
    check_device_memory,
    check_vllm_cache,
    check_host_memory,
    check_time,
)


def findings(check: Check, case: Case) -> list[Finding]:
    """Return the findings of a check. Exceptions become findings, too.

    If there are problems, findings with level "ok" are dropped, except for the phases of a step.
    """
    found: list[Finding] = []
    try:
        found.extend(check(case))  # keeps what the check yields before it raises
    except Exception as failure:  # a broken folder can break a check in any way
        found.append(_about_failure(failure, check, case))
    if case.without_gpu and check in OF_THIS_HOST:
        found = [_about_this_host(finding) for finding in found]
    problems = [finding for finding in found if finding.level != "ok"]
    if not problems or check is check_device_memory:
        return found
    return problems


def _about_failure(failure: Exception, check: Check, case: Case) -> Finding:
    """Return what is wrong. That a model is missing is only said by the check of models."""
    if case.lacks_model and check in OF_MODELS:
        return note("not checked, because a model is missing")
    if isinstance(failure, UserError):
        return error(str(failure), "")
    return error(
        f"could not be checked: {type(failure).__name__}: {failure}",
        "see the other findings first",
    )


def _about_this_host(finding: Finding) -> Finding:
    if finding.level in ("ok", "note"):
        return finding
    return note(f"this host, not the run's hosts: {finding.text}")


def print_findings(console: Console, results: dict[str, list[Finding]]) -> None:
    """Print the findings of each check as a table, and the number of errors and warnings."""
    table = Table(
        "", "check", Column("", overflow="fold"), box=None, show_header=False, pad_edge=False
    )
    levels: list[Level] = []
    for name, found in results.items():
        label = name
        for finding in found:
            fix = f"\n→ {finding.fix}" if finding.fix else ""
            text = Text(f"{finding.text}{fix}")  # a path may look like Rich's markup
            table.add_row(MARKS[finding.level], label, text)
            levels.append(finding.level)
            label = ""
    console.print(table)
    counts = [_counted(levels.count(level), level) for level in ("error", "warning")]
    console.print(", ".join(counts))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def main(arguments: Sequence[str]) -> int:
    """Check a run and return the exit code."""
    if GPU_CHECK in arguments:
        return gpu_check([argument for argument in arguments if argument != GPU_CHECK])
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(HELP)
        return 0
    # The small files suffice for all checks.
    find_models = partial(with_local_models, weights=False, say=print)
    options = [each for each in arguments if each.startswith(RESPONSE_TOKENS)]
    overrides = [each for each in arguments if each not in options]
    try:
        response_tokens = _response_tokens(options)
        config, prism = compose_run(overrides, find_models)
    except UserError as mistake:
        message = command_redactor(arguments, os.environ)(str(mistake))
        sys.stderr.write(f"verl_prism: {message}\n")
        return EXIT_ERRORS
    case = Case(config, prism, response_tokens)
    results = {name: findings(check, case) for name, check in CHECKS.items()}
    print_findings(Console(soft_wrap=False, highlight=False), results)
    levels = {finding.level for found in results.values() for finding in found}
    return EXIT_ERRORS if "error" in levels else 0


def _response_tokens(options: Sequence[str]) -> int | None:
    if not options:
        return None
    value = options[-1].removeprefix(RESPONSE_TOKENS)
    if not value.isdecimal() or int(value) == 0:
        raise UserError(f"{options[-1]}: write a number of tokens, such as {RESPONSE_TOKENS}2000")
    return int(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
