import io
import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.measures.marks import QuestionMarks, intervals
from verl_prism.rollout.sampling import Sample
from verl_prism.stages.evaluation import read_questions, run_eval
from verl_prism.stages.evaluation_grading import Grader, grade_sample, load_measure

RIGHT = "<caption>A 3 and a 5.</caption><think>3 + 5 = 8.</think><answer>8</answer>"
ROW = {
    "data_source": "digits",
    "reward_model": {"ground_truth": "8"},
    "extra_info": {"digits": [3, 5]},
}


def marks_of(value: float) -> dict[str, bool | int | None]:
    """A response that is right (1), wrong (0) or wrong without a perception mark (-1)."""
    return {
        "accuracy": value == 1.0,
        "perception": None if value < 0 else value == 1.0,
        "length": 7,
    }


def no_marks(response, row):
    return {}


def test_an_undefined_mark_is_excluded_from_the_mean():
    marks = [
        QuestionMarks(marks_of(1.0), [marks_of(1.0), marks_of(-1.0)]),
        QuestionMarks(marks_of(1.0), [marks_of(0.0), marks_of(-1.0)]),
        QuestionMarks(marks_of(0.0), [marks_of(1.0), marks_of(1.0)]),
    ]
    result = intervals(marks)
    assert result["accuracy"].mean == pytest.approx(3 / 6)
    assert result["accuracy"].responses == 6
    assert result["perception"].mean == pytest.approx(3 / 4)
    assert result["perception"].responses == 4
    assert result["length"].mean == result["length"].low == 7
    assert result["greedy_accuracy"].mean == pytest.approx(2 / 3)


def test_marks_of_a_response():
    def measure(response, row):
        return {"perception": "3" in response.caption}

    marks = grade_sample(Sample(RIGHT, 22, False), ROW, measure).marks
    assert marks == {"accuracy": True, "perception": True, "format": True, "length": 22}
    assert grade_sample(Sample("8", 1, False), ROW, no_marks).marks["accuracy"] is False


def test_a_task_may_not_redefine_a_mark():
    with pytest.raises(UserError, match="'length' is a mark that every task has"):
        grade_sample(Sample(RIGHT, 22, False), ROW, lambda response, row: {"length": True})


def test_lines_of_the_responses_file():
    """Other tools read this format, so it is spelled out here."""
    samples = [Sample("8", 1, False), Sample(RIGHT, 22, False), Sample("é\u2028", 4, True)]
    file = io.StringIO()
    Grader(no_marks).grade("one", [ROW], [[asdict(sample) for sample in samples]], file)
    lines = file.getvalue().split("\n")
    wrong = '"marks": {"accuracy": false, "format": false, "length": '
    assert lines == [
        '{"policy": "one", "question": 0, "sample": null, "gold": "8", "text": "8", "tokens": 1, '
        f'"truncated": false, "fault": "block is missing", {wrong}1}}}}',
        f'{{"policy": "one", "question": 0, "sample": 0, "gold": "8", "text": "{RIGHT}", '
        '"tokens": 22, "truncated": false, "fault": null, '
        '"marks": {"accuracy": true, "format": true, "length": 22}}',
        '{"policy": "one", "question": 0, "sample": 1, "gold": "8", "text": "é\u2028", '
        f'"tokens": 4, "truncated": true, "fault": "block is missing", {wrong}4}}}}',
        "",
    ]


def test_metrics_function_of_the_task(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("def measure(response, row):\n    return {'blue': None}\n")
    assert load_measure(f"{file}:measure")(None, {}) == {"blue": None}
    assert load_measure(None)(None, {}) == {}
    with pytest.raises(UserError, match="no function 'meassure'"):
        load_measure(f"{file}:meassure")
    with pytest.raises(UserError, match="no file"):
        load_measure(f"{tmp_path}/other.py:measure")
    with pytest.raises(UserError, match="no file ''"):
        load_measure("measure")


def test_more_questions_than_rows(digits_folder, tmp_path):
    folders = (f"prism.root={digits_folder}", f"prism.data.cache={tmp_path}")
    _, prism = compose_run(["stage=eval", *folders, "prism.eval.max_questions=100000"])
    message = r"prism.eval.max_questions=100000, but prism.data.heldout has \d+ rows"
    with pytest.raises(UserError, match=message):
        read_questions(prism)


@pytest.mark.integration
def test_two_policies_end_to_end(digits_folder, tmp_path, vllm_for_cpu):
    _, prism = compose_run(
        [
            "stage=eval",
            f"prism.root={digits_folder}",
            f"prism.output={tmp_path}",
            "prism.data.max_response_tokens=10",
            f"prism.data.heldout={digits_folder}/data/heldout.parquet",
            "prism.eval.max_questions=9",
            "prism.eval.samples=2",
            "prism.reproducible=true",
            "prism.reward.judge.endpoint=http://127.0.0.1:9/v1",  # no response is judged
            "prism.reward.judge.model=none",
            f"prism.reward.judge.cache={tmp_path}/judge",
            f"prism.eval.policies={{one: {digits_folder}/base, two: {digits_folder}/base}}",
        ]
    )
    assert set(run_eval(prism)) == {"one accuracy", "two accuracy"}
    responses = (tmp_path / "responses.jsonl").read_text()
    journal = tmp_path / "samples" / "two.jsonl"
    of_two = journal.read_text().splitlines(keepends=True)
    assert len(of_two) == 9
    journal.write_text("".join(of_two[2:]))  # as if it had been killed before
    run_eval(prism.model_copy(update={"resume": True}))
    assert journal.read_text().splitlines(keepends=True)[:7] == of_two[2:]
    again = (tmp_path / "responses.jsonl").read_text()
    assert again == responses, "a response depends only on its question and chunk"

    lines = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 9 * 3
    assert [line["sample"] for line in lines[:3]] == [None, 0, 1]
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["questions"], results["samples"], results["seed"]) == (9, 2, 0)
    assert results["judge"]["model"] == "none"
    assert set(results["judge"]["policies"]["two"].values()) == {0}
    sampled = [
        line["tokens"] for line in lines if line["policy"] == "two" and line["sample"] is not None
    ]
    assert results["policies"]["two"]["length"]["mean"] == pytest.approx(np.mean(sampled))
    assert results["policies"]["two"]["length"]["responses"] == 18
    assert "| two |" in (tmp_path / "results.md").read_text()
    assert Image.open(tmp_path / "examples.png").width > 800
    progress = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in progress if "step" in line) == 2 * 9 * 3
    assert {"note": "two: starting vLLM"} in progress
