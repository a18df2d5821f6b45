"""Questions that the policy solves sometimes."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from question_rows import question, respond

from verl_prism.errors import UserError
from verl_prism.prepare.command import main
from verl_prism.prepare.filter import Settings, run

RIGHT = respond("Two digits.", "3 + 4 = 7", "7")
WRONG = respond("Two digits.", "3 + 4 = 8", "8")
NO_FORMAT = "7"


def solved(number: int, right: int, of: int = 10) -> dict:
    return question(number, "7", [RIGHT] * right + [WRONG] * (of - right))


def test_rates_between_the_bounds_are_kept(write_rows, tmp_path):
    source = write_rows([solved(number, number) for number in range(11)])
    report = run(Settings(source=source, output=tmp_path / "kept.parquet"))
    kept = pq.read_table(tmp_path / "kept.parquet").to_pylist()
    assert [row["pass_rate"] for row in kept] == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert kept[0]["images"] == solved(2, 2)["images"]
    assert report.counts == {"rows read": 11, "rows kept": 7}
    assert report.rejects == {"pass rate below 0.2": 2, "pass rate above 0.8": 2}
    lines = (tmp_path / "kept.parquet.rejects.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"id": "q0", "reason": "pass rate below 0.2", "pass_rate": 0.0}


def test_a_share_of_an_odd_number_counts_as_written(write_rows, tmp_path):
    source = write_rows([solved(0, 3, of=15), solved(1, 12, of=15)])
    assert run(Settings(source=source, output=tmp_path / "kept.parquet")).counts["rows kept"] == 2


def test_a_response_out_of_format_is_wrong(write_rows, tmp_path):
    source = write_rows([question(0, "7", [RIGHT, NO_FORMAT])])
    run(Settings(source=source, output=tmp_path / "kept.parquet"))
    assert pq.read_table(tmp_path / "kept.parquet")["pass_rate"].to_pylist() == [0.5]


def test_a_reward_of_the_users_own(write_rows, tmp_path):
    (tmp_path / "own.py").write_text(
        "def reward(data_source, solution_str, ground_truth, extra_info):\n"
        "    return float('8' in solution_str)\n"
    )
    source = write_rows([solved(0, 3)])
    settings = Settings(
        source=source, output=tmp_path / "kept.parquet", reward=f"{tmp_path}/own.py:reward"
    )
    run(settings)
    assert pq.read_table(tmp_path / "kept.parquet")["pass_rate"].to_pylist() == [0.7]


def test_no_responses_name_the_row_and_the_command(write_rows, tmp_path, capsys):
    source = write_rows([solved(0, 3), question(1, "7")])
    assert main(["filter", f"source={source}", f"output={tmp_path}/kept.parquet"]) == 2
    assert "row q1: student_responses is empty; python -m verl_prism.data sample" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "kept.parquet").exists()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"student_responses": [RIGHT, None]},
            r"row q1: student_responses\[1\] is null; leave it out of the list",
        ),
        ({"reward_model": None}, "row q1: reward_model is null"),
        ({"reward_model": {"ground_truth": None}}, "row q1: reward_model.ground_truth is null"),
    ],
)
def test_a_wrong_row_is_named(change, message, write_rows, tmp_path):
    source = write_rows([solved(0, 3), solved(1, 3) | change])
    with pytest.raises(UserError, match=message):
        run(Settings(source=source, output=tmp_path / "kept.parquet"))


def test_a_gold_answer_that_is_a_number_is_named(tmp_path):
    row = solved(0, 3) | {"reward_model": {"style": "rule", "ground_truth": 7}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "source.parquet")
    with pytest.raises(UserError, match=r"row q0: reward_model\.ground_truth is 7; write it"):
        run(Settings(source=tmp_path / "source.parquet", output=tmp_path / "kept.parquet"))


VALUES = ["5", "-1", "float('nan')", "'good'", "{'score': 1.0, 'acc': 'good'}"]


@pytest.mark.parametrize("value", VALUES)
def test_a_reward_that_is_no_share_is_refused(value, write_rows, tmp_path):
    (tmp_path / "own.py").write_text(
        f"def reward(data_source, solution_str, ground_truth, extra_info):\n    return {value}\n"
    )
    reward = f"{tmp_path}/own.py:reward"
    settings = Settings(
        source=write_rows([solved(0, 3)]), output=tmp_path / "kept.parquet", reward=reward
    )
    with pytest.raises(UserError, match=r"row q0: reward=/.*own\.py:reward returned"):
        run(settings)


def test_a_source_without_gold_answers(write_rows, tmp_path):
    row = solved(0, 3)
    del row["reward_model"]
    with pytest.raises(UserError, match=r"no column reward_model; .* holds the gold answers"):
        run(Settings(source=write_rows([row]), output=tmp_path / "kept.parquet"))
