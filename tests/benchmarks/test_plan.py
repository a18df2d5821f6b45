"""The gains of benchmarks/plan.py at the paper's sizes do not fall below their bars."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_planned_gains_reach_their_bars_within_the_memory_of_a_gpu():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "plan.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    gains = re.findall(r"(4|16) +\d+/\d+/\d+ +([\d.]+) +([\d.]+) +([\d.]+)", done.stdout)
    four = [each[2:] for each in gains if each[0] == "4"]
    assert four == [("4.68", "5.59"), ("1.95", "4.14"), ("3.83", "16.19"), ("2.62", "6.81")]
    sixteen = [each for each in gains if each[0] == "16"]
    assert len(sixteen) == 4
    for _, unsplit, _, planned in sixteen:
        assert planned == unsplit
