"""Stage sample with hand-written responses instead of vLLM: what it writes and logs."""

import pyarrow.parquet as pq
from logged import LOGGERS, assert_logged, log_below

from verl_prism.compose import compose_run
from verl_prism.rollout.journal import Journal
from verl_prism.run_folder import RunFolder
from verl_prism.stages.sample import run_sample

VALID = "<caption>A {}.</caption><think>It stands alone.</think><answer>{}</answer>"


def test_loggers_get_the_first_responses(digits_folder, tmp_path, monkeypatch):
    def sample(prism, rows, n, log):
        texts = [[VALID.format(number, number), "no format"] for number in range(len(rows))]
        texts[2].reverse()
        Journal(RunFolder(prism.output).rollouts, {}, resume=False).append(enumerate(texts))

    run = RunFolder(tmp_path / "output")
    run.path.mkdir()
    source = tmp_path / "train.parquet"
    pq.write_table(pq.read_table(digits_folder / "data" / "train.parquet").slice(0, 6), source)
    monkeypatch.setattr("verl_prism.stages.sample.sample_training_rows", sample)
    log_below(run, monkeypatch)
    settings = (f"prism.data.train={source}", "prism.samples_per_step=3", *LOGGERS)
    folders = (f"prism.root={digits_folder}", f"prism.output={run.path}")
    summary = run_sample(compose_run(["stage=sample", *folders, *settings])[1])
    assert summary["invalid responses"] == "50.0%"
    responses = pq.read_table(run.samples_file)["student_responses"].to_pylist()
    expected = []
    for row in (0, 2, 4):
        fault = "block is missing" if row == 2 else ""
        expected.append({"row": row, "response": responses[row][0], "fault": fault})
    assert expected[1]["response"] == "no format"
    assert_logged(run, {0: expected}, {0: {"sample/invalid": 0.5}})
