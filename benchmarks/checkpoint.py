"""What a checkpoint costs: its time beside that of a step, its bytes, and memory while it is saved.

    python benchmarks/checkpoint.py [--steps 4] stage=align prism.root=outputs/digits [key=value …]

Runs the stage with a checkpoint after every second step, in an output folder that is removed afterwards.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from cost import tree_memory

MIB = 2**20


def watch(run: subprocess.Popen, output: Path) -> dict[bool, int]:
    """The peak memory while a checkpoint is being written (True), and at other times after the first step (False)."""
    peak = {True: 0, False: 0}
    while run.poll() is None:
        saving = any((output / "checkpoints" / "unfinished").glob("global_step_*"))
        with contextlib.suppress(psutil.NoSuchProcess):
            if (output / "metrics.jsonl").exists():
                peak[saving] = max(peak[saving], tree_memory(psutil.Process(run.pid)))
        time.sleep(0.05)
    return peak


def report(output: Path, peak: dict[bool, int]) -> str:
    records = [
        json.loads(line)["data"] for line in (output / "metrics.jsonl").read_text().splitlines()
    ]
    saves = [
        data["timing_s/save_checkpoint"] for data in records if "timing_s/save_checkpoint" in data
    ]
    steps = [data["timing_s/step"] - data.get("timing_s/save_checkpoint", 0.0) for data in records]
    save, step = statistics.median(saves), statistics.median(steps[1:])  # the first one warms up
    manifest = json.loads(
        next((output / "checkpoints").glob("global_step_*/manifest.json")).read_text()
    )
    weights = sum(size for name, size in manifest["files"].items() if name.endswith(".safetensors"))
    total = sum(manifest["files"].values())
    return (
        f"a checkpoint: {save:.2f} s, {save / step:.0%} of a step of {step:.2f} s; {total / MIB:.0f} MiB, of which "
        f"{weights / MIB:.0f} MiB Hugging Face weights\n"
        f"peak memory of all processes: {peak[True] / MIB:.0f} MiB while saving, {peak[False] / MIB:.0f} MiB otherwise"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4)
    options, overrides = parser.parse_known_args()
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    own = [f"prism.steps={options.steps}", "prism.checkpoint_every=2", f"prism.output={folder}"]
    try:
        run = subprocess.Popen([sys.executable, "-m", "verl_prism.main", *overrides, *own])
        peak = watch(run, folder)
        if run.returncode == 0:
            print(report(folder, peak))
        return run.returncode
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
