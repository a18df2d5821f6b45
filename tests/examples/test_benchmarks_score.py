"""From converted rows over graded responses, as stage eval writes them, to a table."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from verl_prism.errors import UserError
from verl_prism.run_folder import RunFolder
from verl_prism.stages.evaluation_grading import Grader, load_measure

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import convert  # noqa: E402
import score  # noqa: E402


def published(file: Path) -> Path:
    """Write four questions of HallusionBench: two about each of two figures. All golds are yes."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    fixed = {"category": "VD", "subcategory": "map", "visual_input": "1", "set_id": "0"}
    rows = [
        {
            **fixed,
            "figure_id": str(figure),
            "question_id": str(question),
            "question": "Is it?",
            "gt_answer": "1",
            "image": {"bytes": buffer.getvalue()},
        }
        for figure in range(2)
        for question in range(2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def response(answer: str) -> dict:
    text = f"<caption>A map.</caption><think>I look.</think><answer>{answer}</answer>"
    return {"text": text, "tokens": 9, "truncated": False}


def write_run(folder: Path, heldout: Path, answers: list[list[str]]) -> Path:
    """Write what stage eval writes. answers[Q][1 + S]: the greedy answer and the sampled ones."""
    folder.mkdir()
    rows = pq.read_table(heldout).to_pylist()[: len(answers)]
    responses = [[response(answer) for answer in each] for each in answers]
    with open(RunFolder(folder).responses, "w", encoding="utf-8") as lines:
        Grader(load_measure(None)).grade("aligned", rows, responses, lines)
    results = {"heldout": str(heldout), "questions": len(answers)}
    RunFolder(folder).results.write_text(json.dumps(results), encoding="utf-8")
    return folder


@pytest.fixture
def heldout(tmp_path):
    file = tmp_path / "heldout.parquet"
    convert.convert("hallusion_bench", [published(tmp_path / "p.parquet")], file, "Answer.")
    return file


ANSWERS = [
    ["Yes", "Yes", "No"],
    ["Yes", "No", "No"],
    ["No", "Yes", "Yes"],
    ["Yes", "Yes", "No"],
]


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCHMARKS / "score.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_table_has_the_greedy_measure_and_the_mean_over_samples(tmp_path, heldout):
    """By hand: greedy misses question 2 (figure 1, question 0). Sample 0 misses question 1.

    Sample 1 is right about question 2 alone. aAcc 3/4; 3/4, 1/4. qAcc (questions 0 and 2, 1 and 3)
    1/2; 1/2, 0. fAcc (questions 0 and 1, 2 and 3) 1/2; 1/2, 0.
    """
    done = run("hallusion_bench", write_run(tmp_path / "run", heldout, ANSWERS))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:7] == [
        "## aligned: hallusion_bench, percent",
        "",
        "| measure | count | greedy | sampled |",
        "|---|---|---|---|",
        "| aAcc | 4 | 75.0 | 50.0 |",
        "| qAcc | 2 | 50.0 | 25.0 |",
        "| fAcc | 2 | 50.0 | 25.0 |",
    ]


def test_a_run_of_the_first_questions_is_read(tmp_path, heldout):
    folder = write_run(tmp_path / "run", heldout, ANSWERS[:2])
    draws = score.read_draws("hallusion_bench", folder, None)["aligned"]
    assert {sample: len(answers) for sample, answers in draws.items()} == {None: 2, 0: 2, 1: 2}


def test_rows_that_the_run_skipped_are_skipped(tmp_path, heldout):
    folder = write_run(tmp_path / "run", heldout, ANSWERS[:3])
    skipped = json.dumps({"train": [], "heldout": [0]})
    RunFolder(folder).skipped_rows.write_text(skipped, encoding="utf-8")
    draws = score.read_draws("hallusion_bench", folder, None)["aligned"]
    assert [answer.facts["index"] for answer in draws[None]] == [1, 2, 3]


def test_another_held_out_file_is_an_error(tmp_path, heldout):
    folder = write_run(tmp_path / "run", heldout, ANSWERS)
    with pytest.raises(UserError, match="the held-out file is of hallusion_bench, not of mmmu"):
        score.read_draws("mmmu", folder, None)
    rows = pq.read_table(heldout).to_pylist()
    for row in rows:
        row["reward_model"]["ground_truth"] = "No"
    other = tmp_path / "other.parquet"
    pq.write_table(pa.Table.from_pylist(rows), other)
    with pytest.raises(UserError, match="question 0: the run has the gold answer 'Yes'"):
        score.read_draws("hallusion_bench", folder, [other])
    pq.write_table(pa.Table.from_pylist(rows[:3]), other)
    with pytest.raises(UserError, match="has 4 questions, but the held-out file 3"):
        score.read_draws("hallusion_bench", folder, [other])


def test_an_unfinished_run_is_an_error(tmp_path, heldout):
    done = run("hallusion_bench", tmp_path)
    assert done.returncode == 1
    assert "results.json does not exist; give the folder of a finished run" in done.stderr
    folder = write_run(tmp_path / "run", heldout, ANSWERS)
    responses = RunFolder(folder).responses
    lines = responses.read_text(encoding="utf-8").splitlines()
    responses.write_text("\n".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(UserError, match="aligned has 3 responses with sample 1"):
        score.read_draws("hallusion_bench", folder, None)


def test_a_response_that_is_not_in_the_format_is_wrong(tmp_path, heldout):
    folder = write_run(tmp_path / "run", heldout, [["</answer> Yes", "Yes"]])
    draws = score.read_draws("hallusion_bench", folder, None)["aligned"]
    assert [draws[None][0].correct, draws[0][0].correct] == [False, True]
