"""Measure what a setting costs: seconds per part of a step, with each of two values.

    python benchmarks/step_time.py ROOT KEY VALUE VALUE [--stage align] [--steps 6] [key=value …]

For example:

    python benchmarks/step_time.py outputs/digits prism.reproducible false true
    python benchmarks/step_time.py outputs/digits prism.rollout.old_log_probs always auto \\
        prism.reproducible=true

ROOT is the folder of a pipeline after stage warmup (`make demo` writes outputs/digits). The two
runs are one after the other, in temporary folders. The first step of each does not count for the
time, because vLLM starts up in it. The table also has the loss and the gradient norm of the first
step, which show whether both runs compute the same.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from verl_prism.run_folder import RunFolder

PARTS = (
    "step",
    "gen",
    "old_log_prob",
    "adv",
    "update_discriminator",
    "update_actor",
    "update_weights",
)
RESULTS = ("actor/pg_loss", "actor/grad_norm")
Steps = list[dict[str, float]]


def main() -> None:
    """Run both, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("key")
    parser.add_argument("values", nargs=2)
    parser.add_argument("--stage", default="align")
    parser.add_argument("--steps", type=int, default=6)
    options, overrides = parser.parse_known_args()
    fixed = [f"stage={options.stage}", f"prism.root={options.root.absolute()}", *overrides]
    fixed.append(f"prism.steps={options.steps}")
    runs = [run([*fixed, f"{options.key}={value}"]) for value in options.values]
    print_table(options.key, options.values, runs)


def run(overrides: list[str]) -> Steps:
    """Run a stage and return the metrics of each step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "verl_prism.main", *overrides, f"prism.output={folder}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        metrics = RunFolder(Path(folder)).metrics.read_text()
    records = [json.loads(line) for line in metrics.splitlines()]
    return [record["data"] for record in records if "data" in record]


def print_table(key: str, values: list[str], runs: list[Steps]) -> None:
    """Print seconds per part of a step, as median without the first step, and the first results."""
    print(f"{key:24}{values[0]:>12}{values[1]:>12}{'ratio':>8}")
    for part in PARTS:
        name = f"timing_s/{part}"
        if name not in runs[0][0]:
            continue
        first = median(step[name] for step in runs[0][1:])
        second = median(step[name] for step in runs[1][1:])
        print(f"{part + ' (s)':24}{first:12.3f}{second:12.3f}{second / first:8.2f}")
    for name in RESULTS:
        print(f"{name:24}{runs[0][0][name]:12.7f}{runs[1][0][name]:12.7f}")


if __name__ == "__main__":
    main()
