"""What `prism.reproducible=true` costs: seconds of a step of alignment with it and without.

    python benchmarks/reproducible.py ROOT [--steps 6] [key=value …]

ROOT is the folder of a pipeline that has been through its warm-up (`make demo` leaves outputs/digits). The two runs
follow each other in a folder that is removed afterwards; the first step of each, which starts vLLM up, does not count.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

PARTS = ("step", "gen", "old_log_prob", "update_discriminator", "update_actor", "update_weights")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=6)
    options, overrides = parser.parse_known_args()
    seconds = {
        value: seconds_of_a_step(value, options.root, options.steps, overrides)
        for value in ("false", "true")
    }
    print(
        f"{'median seconds':24}{'false':>8}{'true':>8}{'ratio':>8}   of steps 2 to {options.steps}"
    )
    for part in PARTS:
        without, with_it = seconds["false"][part], seconds["true"][part]
        print(f"{part:24}{without:8.2f}{with_it:8.2f}{with_it / without:8.2f}")


def seconds_of_a_step(
    value: str, root: Path, steps: int, overrides: Sequence[str]
) -> dict[str, float]:
    """The median over all steps but the first, by part of a step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "verl_prism.main",
            "stage=align",
            f"prism.root={root.absolute()}",
        ]
        command += [
            f"prism.output={folder}",
            f"prism.steps={steps}",
            f"prism.reproducible={value}",
            *overrides,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        records = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        timed = [record["data"] for record in records if "data" in record][1:]
    return {part: median(step[f"timing_s/{part}"] for step in timed) for part in PARTS}


if __name__ == "__main__":
    main()
