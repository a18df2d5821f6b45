"""The command: python -m verl_prism.gpu_check. See docs/gpu.md."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from verl_prism.gpu_check.runner import Plan, Report, run_steps
from verl_prism.gpu_check.steps import STEPS
from verl_prism.gpu_check.table import markdown

NAMES = [step.name for step in STEPS]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="verl_prism.gpu_check",
        description="Check the discriminator, and then every stage, on one GPU. A JSON report is "
        "replaced after each step.",
    )
    add = parser.add_argument
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    add("--quick", action="store_true", help="all steps at tiny sizes")
    add("--minutes", type=float, default=15.0, help="time for all steps together (15)")
    add("--steps", nargs="+", choices=NAMES, metavar="STEP", help=f"only these: {' '.join(NAMES)}")
    add("--json", type=Path, default=Path("outputs/gpu_check.json"), help="file of the report")
    add("--table", type=Path, metavar="JSON", help="only print the tables of a report, as markdown")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check. Return 0, 1 if a step failed, or 2 if a file cannot be read or written."""
    options = parser().parse_args(arguments)
    try:
        return print_table(options.table) if options.table else run(options)
    except OSError as error:
        sys.stderr.write(f"verl_prism.gpu_check: {error}\n")
        return 2


def print_table(file: Path) -> int:
    """Print the tables of a report. Return the exit code."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        sys.stderr.write(f"verl_prism.gpu_check: {file} is not a report: {error}\n")
        return 2
    sys.stdout.write(markdown(report))
    return 0


def run(options: argparse.Namespace) -> int:
    """Run the steps. Return the exit code."""
    # A terminated check ends its step's processes too.
    signal.signal(signal.SIGTERM, _exit)
    chosen = [step for step in STEPS if step.name in (options.steps or NAMES)]
    plan = Plan(chosen, options.device, options.quick, 60 * options.minutes, options.json)
    report = run_steps(plan, show)
    failed = [step["name"] for step in report["steps"] if step["status"] == "fail"]
    sys.stdout.write(f"{len(failed)} of {len(chosen)} steps failed; report: {options.json}\n")
    return 1 if failed else 0


def show(result: Report) -> None:
    """Print the line of a step, and the last line of its error."""
    last = [*result.get("error", []), result["reason"]]
    reason = next((line for line in reversed(last) if line), "")
    line = f"{result['status']:5} {result['name']:22} {result['seconds']:6.1f} s  {reason}"
    sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.flush()


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
