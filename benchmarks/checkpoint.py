"""Measure the cost of a checkpoint: its time compared with a step, its size, and peak memory.

    python benchmarks/checkpoint.py [--steps 4] stage=align prism.root=outputs/digits [key=value …]

Runs the stage with a checkpoint after every second step, in a temporary output folder.
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
from dataclasses import dataclass
from pathlib import Path

import psutil
from cost import tree_memory

from verl_prism.run_folder import RunFolder

MIB = 2**20


@dataclass
class Peak:
    """Peak memory of all processes in bytes, while a checkpoint is written and at other times."""

    saving: int = 0
    otherwise: int = 0


def watch(stage: subprocess.Popen, run: RunFolder) -> Peak:
    """Measure until the stage ends, beginning with its first step."""
    peak = Peak()
    while stage.poll() is None:
        saving = any(run.unfinished_checkpoints.glob("global_step_*"))
        with contextlib.suppress(psutil.NoSuchProcess):
            if run.metrics.exists():
                memory = tree_memory(psutil.Process(stage.pid))
                if saving:
                    peak.saving = max(peak.saving, memory)
                else:
                    peak.otherwise = max(peak.otherwise, memory)
        time.sleep(0.05)
    return peak


def report(run: RunFolder, peak: Peak) -> str:
    saves = []
    steps = []
    for line in run.metrics.read_text().splitlines():
        data = json.loads(line)["data"]
        save = data.get("timing_s/save_checkpoint")
        if save is not None:
            saves.append(save)
        steps.append(data["timing_s/step"] - (save or 0.0))
    save = statistics.median(saves)
    step = statistics.median(steps[1:])  # the first step includes the warm-up
    manifest = json.loads(next(run.checkpoints.glob("global_step_*/manifest.json")).read_text())
    sizes = manifest["files"]
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    total = sum(sizes.values())
    return (
        f"a checkpoint: {save:.2f} s, {save / step:.0%} of a step of {step:.2f} s; "
        f"{total / MIB:.0f} MiB, of which {weights / MIB:.0f} MiB Hugging Face weights\n"
        f"peak memory of all processes: {peak.saving / MIB:.0f} MiB while saving, "
        f"{peak.otherwise / MIB:.0f} MiB otherwise"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4)
    options, overrides = parser.parse_known_args()
    run = RunFolder(Path(tempfile.mkdtemp(prefix="checkpoint-")))
    own = [f"prism.steps={options.steps}", "prism.checkpoint_every=2", f"prism.output={run.path}"]
    try:
        stage = subprocess.Popen([sys.executable, "-m", "verl_prism.main", *overrides, *own])
        peak = watch(stage, run)
        if stage.returncode == 0:
            print(report(run, peak))
        return stage.returncode
    finally:
        shutil.rmtree(run.path, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
