"""Write a report of one run or several, also while they run: python -m verl_prism.report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from verl_prism.errors import UserError
from verl_prism.report.page import write_report
from verl_prism.run_folder import RunFolder

HELP = """\
usage: python -m verl_prism.report RUN [RUN ...] [--output FILE]

Write one HTML file about one run or several: charts of all metrics, samples with their pictures,
and settings. RUN is the output folder of a stage (prism.output). A browser opens the file without
a server and without the network. It can be written at any time, also during the runs.

  --output FILE   default: report.html in the folder of the first run
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report. Return 0, or 2 after a user's error."""
    parser = argparse.ArgumentParser(prog="verl_prism.report", add_help=False)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--help", "-h", action="store_true")
    options = parser.parse_args(arguments)
    if options.help or not options.runs:
        sys.stdout.write(HELP)
        return 0 if options.help else 2
    folders = [folder.absolute() for folder in options.runs]
    target = options.output or RunFolder(folders[0]).report
    try:
        write_report(folders, target)
    except UserError as error:
        sys.stderr.write(f"verl_prism: {error}\n")
        return 2
    sys.stdout.write(f"{target}: {target.stat().st_size / 1e6:.1f} MB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
