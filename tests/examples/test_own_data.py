"""From raw questions to a trained policy; the digits policy behind vLLM is the teacher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from vllm_teacher import NAME, vllm_teacher

REPOSITORY = Path(__file__).parents[2]
DIGITS = REPOSITORY / "examples" / "digits"


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(3600)
def test_from_raw_questions_to_an_evaluated_policy(pipeline, digits_folder, tmp_path):
    raw, root = tmp_path / "raw", tmp_path / "runs"
    write_raw = ["--data", digits_folder / "data", "--out", raw, "--rows", "400"]
    subprocess.run([sys.executable, DIGITS / "raw.py", *write_raw], check=True)
    assert not any("caption" in line for line in (raw / "questions.jsonl").open())
    with vllm_teacher(pipeline.root / "sft" / "policy", tmp_path / "vllm.log") as endpoint:
        done = subprocess.run(
            [DIGITS / "own_data.sh", raw, digits_folder / "base", root, endpoint, NAME, "60"],
            cwd=REPOSITORY,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    results = json.loads((root / "eval" / "results.json").read_text())
    assert list(results["policies"]) == ["SFT", "aligned", "RL"]
    kept = pq.read_table(root / "data" / "train.parquet")
    rejects = (root / "data" / "train.parquet.rejects.jsonl").read_text().splitlines()
    split = [pq.read_metadata(root / "split" / "train.parquet").num_rows]
    assert kept.num_rows + len(rejects) == split[0]
    assert kept.num_rows > 50
