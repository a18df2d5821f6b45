"""The command `verl-prism`, which is the same as `python -m` with the module of each subcommand."""

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

HELP = """\
usage: verl-prism COMMAND [ARGUMENTS]

  run stage=…      a stage: SFT, warm-up, alignment, RL, evaluation  (python -m verl_prism.main)
  data COMMAND     make and check data                               (… verl_prism.data)
  doctor stage=…   check what a run needs before it starts           (… verl_prism.doctor)
  cluster …        a stage on several hosts                          (… verl_prism.cluster)
  report RUN …     a page with the charts and samples of runs        (… verl_prism.report)
  discriminator …  make the folder of a discriminator                (… verl_prism.discriminator)
  demo [FOLDER]    the whole method on pictures of digits, on two CPU cores

verl-prism COMMAND --help explains a command. verl-prism --version prints the version.
"""
DEMO_HELP = """\
usage: verl-prism demo [FOLDER] [SEED]

Run the whole method on pictures of handwritten digits, with a model of 1.4 million parameters, on
two CPU cores: about 12 minutes if they are idle. The results are in FOLDER (default:
outputs/digits). The same command continues a demo that was stopped.
"""
MODULES = {
    "run": "verl_prism.main",
    "data": "verl_prism.prepare.command",
    "doctor": "verl_prism.doctor.__main__",
    "cluster": "verl_prism.cluster.__main__",
    "report": "verl_prism.report.__main__",
    "discriminator": "verl_prism.discriminator.__main__",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; 2 if there is no such command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command, others = (given[0], given[1:]) if given else ("", [])
    if command in ("--help", "-h"):
        sys.stdout.write(HELP)
        return 0
    if command == "demo":
        return demo(others)
    if command == "--version":
        sys.stdout.write(f"verl-prism {version('verl_prism')}\n")
        return 0
    if command not in MODULES:
        unknown = f"there is no command {command!r}\n\n" if command else ""
        sys.stderr.write(unknown + HELP)
        return 2
    module = importlib.import_module(MODULES[command])
    status: int = module.main(others)
    return status


def demo(arguments: Sequence[str]) -> int:
    """Run the demo of the digits with this Python, and return its exit code."""
    if {"--help", "-h"} & set(arguments):
        sys.stdout.write(DEMO_HELP)
        return 0
    folder = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    script = str(digits_folder() / "run.sh")
    return subprocess.run(["bash", script, *arguments], env=environment).returncode


def digits_folder() -> Path:
    """Return `examples/digits`: in the installed package, or in a checkout."""
    package = Path(__file__).parent
    installed = package / "examples" / "digits"
    return installed if installed.is_dir() else package.parent / "examples" / "digits"


if __name__ == "__main__":
    sys.exit(main())
