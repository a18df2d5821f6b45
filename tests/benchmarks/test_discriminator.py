"""The benchmark of the discriminator with small sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


def test_ours_computes_the_gradients_of_the_reference_with_one_image_encoding(tmp_path):
    path = tmp_path / "results.json"
    done = subprocess.run(
        [
            sys.executable,
            BENCHMARKS / "discriminator.py",
            "--quick",
            "--groups",
            "2",
            "--json",
            path,
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report["agree"]
    for row in report["rows"]:
        assert max(row["difference"][of] for of in ("loss", "scores", "gradient")) <= 1e-5
        assert row["reference"]["image_encodings_per_group"] == 6 * row["students"]
        for ours in ("ours", "dedicated"):
            assert row[ours]["image_encodings_per_group"] == 1
            assert row[ours]["token_efficiency"] >= 0.95
