"""The policy's own responses, from the command to the warm-up of the discriminator."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from question_rows import question

from verl_prism.compose import compose_run
from verl_prism.data.rows import parquet_files
from verl_prism.prepare.command import main
from verl_prism.prepare.sample import Settings, run, stage_arguments


def test_settings_become_arguments_of_the_stage(tmp_path):
    for name in ("it's.parquet", "a (1)=b.parquet"):
        pq.write_table(pa.table({"prompt": ["?"]}), tmp_path / name)
    settings = Settings(
        source=tmp_path,
        output=tmp_path / "sampled.parquet",
        policy=str(tmp_path),
        n=8,
        temperature=0.7,
        max_response_tokens=32,
        run=("hardware=8xh100", "model=qwen3_vl_4b", "prism.seed=3"),
    )
    _, prism = compose_run(stage_arguments(settings, tmp_path / "run"))
    assert list(prism.data.train) == parquet_files("source", settings.source)
    assert (prism.stage, prism.policy, prism.seed) == ("sample", tmp_path, 3)
    assert (prism.rollout.samples_per_prompt, prism.rollout.temperature) == (8, 0.7)
    assert prism.data.max_response_tokens == 32
    assert prism.hardware.devices_per_node == 8
    assert prism.resume


def test_an_interrupted_stage_interrupts_the_command(write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr("verl_prism.main.main", lambda arguments: 130)
    source = write_rows([question(0, "7")])
    with pytest.raises(KeyboardInterrupt):
        run(Settings(source=source, output=tmp_path / "sampled.parquet", policy="."))


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (1, "stage sample failed (exit code 1), see {}/log.txt; the same command resumes it"),
        (75, "stage sample was asked to end, and has saved its responses; run the command again"),
    ],
)
def test_a_stage_that_has_ended_early_is_a_problem(
    status, message, write_rows, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("verl_prism.main.main", lambda arguments: status)
    output = tmp_path / "sampled.parquet"
    arguments = [f"source={write_rows([question(0, '7')])}", f"output={output}", "policy=."]
    assert main(["sample", *arguments]) == 1
    shown = capsys.readouterr().err
    assert shown == f"verl_prism.data: {message.format(f'{output}.run')}\n"


def test_input_that_the_stage_refuses_is_refused(write_rows, tmp_path, capsys):
    source = write_rows([question(0, "7")])
    arguments = [f"source={source}", f"output={tmp_path}/sampled.parquet"]
    assert main(["sample", *arguments, f"policy={tmp_path}/nowhere"]) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("verl_prism: prism.policy=")
    assert last == "verl_prism.data: stage sample refused its input, see above"


@pytest.mark.slow
@pytest.mark.integration
def test_responses_of_the_policy_reach_the_warmup(pipeline, digits_folder, tmp_path, capfd):
    source = tmp_path / "train.parquet"
    pq.write_table(pq.read_table(digits_folder / "data" / "train.parquet").slice(0, 48), source)
    sampled, pairs = tmp_path / "sampled.parquet", tmp_path / "pairs.parquet"
    command = [
        "sample",
        f"source={source}",
        f"output={sampled}",
        f"policy={pipeline.root}/sft/policy",
        "n=4",
        "run=[model=digits, hardware=cpu]",
    ]
    assert main(command) == 0
    rows = pq.read_table(sampled).to_pylist()
    assert [len(row["student_responses"]) for row in rows] == [4] * 48
    assert [row["prompt"] for row in rows] == pq.read_table(source)["prompt"].to_pylist()
    capfd.readouterr()
    assert main(command) == 0
    assert "keeping the responses" in capfd.readouterr().out
    assert pq.read_table(sampled).to_pylist() == rows
    assert main(["pairs", f"source={sampled}", f"output={pairs}", "match_length=false"]) == 0
    metrics = pipeline.run(
        "warmup",
        "prism.steps=2",
        f"prism.data.train={pairs}",
        "prism.warmup.responses=file",
        f"prism.policy={pipeline.root}/sft/policy",
        output=tmp_path / "warmup",
    )
    assert len(metrics) == 2
    assert not (tmp_path / "warmup" / "rollouts.jsonl").exists()
