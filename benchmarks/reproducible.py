"""Measure what `prism.reproducible=true` costs: seconds per step of stage align, with and without.

    python benchmarks/reproducible.py ROOT [--steps 6] [key=value …]

ROOT is the folder of a pipeline after stage warmup (`make demo` writes outputs/digits). The two
runs are one after the other, in temporary folders. The first step of each does not count, because
vLLM starts up in it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from verl_prism.run_folder import RunFolder

PARTS = ("step", "gen", "old_log_prob", "update_discriminator", "update_actor", "update_weights")


def main() -> None:
    """Run both, and print a table of seconds per part of a step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=6)
    options, overrides = parser.parse_known_args()
    default = step_seconds("false", options.root, options.steps, overrides)
    reproducible = step_seconds("true", options.root, options.steps, overrides)
    print(
        f"{'median seconds':24}{'false':>8}{'true':>8}{'ratio':>8}   of steps 2 to {options.steps}"
    )
    for part in PARTS:
        ratio = reproducible[part] / default[part]
        print(f"{part:24}{default[part]:8.2f}{reproducible[part]:8.2f}{ratio:8.2f}")


def step_seconds(
    reproducible: str, root: Path, steps: int, overrides: Sequence[str]
) -> dict[str, float]:
    """Return the median over all steps except the first, for each part of a step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "verl_prism.main",
            "stage=align",
            f"prism.root={root.absolute()}",
            f"prism.output={folder}",
            f"prism.steps={steps}",
            f"prism.reproducible={reproducible}",
            *overrides,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        metrics = RunFolder(Path(folder)).metrics.read_text()
        records = [json.loads(line) for line in metrics.splitlines()]
        timed = [record["data"] for record in records if "data" in record][1:]
    return {part: median(step[f"timing_s/{part}"] for step in timed) for part in PARTS}


if __name__ == "__main__":
    main()
