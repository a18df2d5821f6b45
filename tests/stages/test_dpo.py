"""Stage dpo on real pairs: it learns to prefer the teacher, and resumes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from logged import LOGGERS, assert_logged, by_step
from safetensors.torch import load_file

from verl_prism.checkpoints.preemption import EXIT_SAVED
from verl_prism.report.step_samples import read_samples
from verl_prism.rollout.journal import read_journal
from verl_prism.run_folder import RunFolder

pytestmark = pytest.mark.integration

RESPONSES = pa.list_(pa.string())


@pytest.fixture(scope="module")
def pairs(digits_folder, tmp_path_factory) -> Path:
    """Questions with two responses that are wrong, and one that is the teacher's own.

    One response contains `<image>`, which is text there.
    """
    table = pq.read_table(digits_folder / "data" / "train.parquet").slice(0, 32)
    wrong = "<caption> A 0. </caption><think> 0 + {} = 9 </think><answer> 9 </answer>"
    responses = [
        [wrong.format(number % 10), text, wrong.format("zero")]
        for number, text in enumerate(table["teacher_response"].to_pylist())
    ]
    responses[3][0] = wrong.format("<image> 3")
    file = tmp_path_factory.mktemp("pairs") / "samples.parquet"
    pq.write_table(table.append_column("student_responses", pa.array(responses, RESPONSES)), file)
    return file


def train(digits_folder, pairs, output, *arguments: str, fails: bool = False):
    """Run the stage to its end."""
    process = start(digits_folder, pairs, output, *arguments)
    stdout, stderr = process.communicate()
    assert fails or process.returncode == 0, stdout + stderr
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def start(digits_folder, pairs, output, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "verl_prism.main", "stage=dpo", f"prism.root={digits_folder}"]
    settings = [
        f"prism.output={output}",
        f"prism.policy={digits_folder}/base",
        f"prism.data.train={pairs}",
        "prism.dpo.pairs_per_step=8",
        "prism.dpo.responses_per_prompt=2",
        "prism.optim.lr=1e-3",
        "prism.optim.schedule=constant",
        "prism.optim.warmup_ratio=0",
    ]
    line = [*command, *settings, *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps(output: Path) -> list[dict]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["data"] for line in lines]


def reference(output: Path) -> torch.Tensor:
    """Return the reference's log-probabilities [pairs, 2]."""
    records = sorted(read_journal(RunFolder(output).reference), key=lambda record: record["row"])
    assert [record["row"] for record in records] == list(range(len(records)))
    return torch.tensor([record["responses"] for record in records])


def test_it_learns_to_prefer_the_teacher(digits_folder, pairs, tmp_path):
    done = train(digits_folder, pairs, tmp_path / "dpo", "prism.steps=10", *LOGGERS)
    metrics = steps(tmp_path / "dpo")
    assert "accuracy" in done.stdout
    assert "10 steps in" in done.stdout
    assert metrics[0]["train/loss"] == pytest.approx(0.6931, abs=1e-3)  # it is its own reference
    assert metrics[0]["dpo/margin"] == pytest.approx(0.0, abs=1e-3)
    assert metrics[-1]["train/loss"] < 0.6
    assert metrics[-1]["dpo/margin"] > 0
    epoch = [step["dpo/ties"] for step in metrics[:8]]
    assert sum(epoch) / 8 == 0.5  # the second responses
    assert reference(tmp_path / "dpo").shape == (64, 2)
    assert (tmp_path / "dpo" / "policy" / "model.safetensors").is_file()
    run = RunFolder(tmp_path / "dpo")
    samples = by_step(read_samples(run))
    assert_logged(run, samples)
    rows = pq.read_table(pairs).to_pylist()
    for number, step in enumerate(metrics, 1):
        for sample in samples[number]:  # all eight pairs
            assert sample["response"] in rows[sample["row"]]["student_responses"]
            difference = sample["teacher_reward"] - sample["student_reward"]
            assert sample["margin"] == pytest.approx(difference, abs=1e-5)
        margins = [sample["margin"] for sample in samples[number]]
        assert sum(margins) / 8 == pytest.approx(step["dpo/margin"], abs=1e-5)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_reference(digits_folder, pairs, tmp_path):
    train(digits_folder, pairs, tmp_path / "whole", "prism.steps=4")
    train(digits_folder, pairs, tmp_path / "parts", "prism.steps=2")
    before = reference(tmp_path / "parts")
    train(digits_folder, pairs, tmp_path / "parts", "prism.steps=4", "prism.resume=true")
    after = reference(tmp_path / "parts")
    assert torch.equal(before, after)
    expected = load_file(tmp_path / "whole" / "policy" / "model.safetensors")
    found = load_file(tmp_path / "parts" / "policy" / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_reference_is_kept_over_an_early_end(digits_folder, pairs, tmp_path, ranks):
    devices = f"prism.hardware.devices_per_node={ranks}"
    train(digits_folder, pairs, tmp_path / "whole", "prism.steps=1", devices)
    output = tmp_path / "parts"
    output.mkdir()
    run = RunFolder(output)
    ended = start(digits_folder, pairs, output, "prism.steps=1", devices)
    while not run.reference.is_file():
        assert ended.poll() is None, ended.communicate()
        time.sleep(0.01)
    run.end_request.touch()
    ended.communicate()
    assert ended.returncode == EXIT_SAVED
    first = run.reference.read_text()
    assert 0 < len(first.splitlines()) < 64
    resumed = train(digits_folder, pairs, output, "prism.steps=1", "prism.resume=true", devices)
    assert "keeping the log-probabilities in" in resumed.stdout
    assert run.reference.read_text().startswith(first)
    torch.testing.assert_close(reference(output), reference(tmp_path / "whole"))
    assert steps(output)[0]["train/loss"] == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.slow
def test_two_ranks_make_the_updates_of_one(digits_folder, pairs, tmp_path):
    found = []
    for ranks in (1, 2):
        output = tmp_path / str(ranks)
        devices = f"prism.hardware.devices_per_node={ranks}"
        train(digits_folder, pairs, output, "prism.steps=1", devices)
        found.append((reference(output), steps(output)[0]["train/loss"]))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-3, rtol=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-3)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prism.dpo.responses_per_prompt=4", "row 0: student_responses has 3 responses, fewer"),
        ("prism.hardware.max_tokens_per_device=60", "32 of 32 rows of prism.data.train are too"),
    ],
)
def test_pairs_that_cannot_be_used_are_refused(digits_folder, pairs, tmp_path, setting, message):
    done = train(digits_folder, pairs, tmp_path / "dpo", setting, "--check", fails=True)
    assert done.returncode == 2
    assert message in done.stderr
