import json

import numpy as np
import pytest
from PIL import Image

from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.rollout.sampler import Sample
from verl_prism.stages.evaluation import (
    Answers,
    intervals,
    load_measure,
    mark,
    read_questions,
    run_eval,
)

RIGHT = "<caption>A 3 and a 5.</caption><think>3 + 5 = 8.</think><answer>8</answer>"
ROW = {
    "data_source": "digits",
    "reward_model": {"ground_truth": "8"},
    "extra_info": {"digits": [3, 5]},
}


def answers(sampled: list[list[float]], greedy: list[float]) -> Answers:
    def marks(right: float) -> dict:
        return {
            "accuracy": right == 1.0,
            "perception": None if right < 0 else right == 1.0,
            "length": 7,
        }

    return Answers(
        [],
        [],
        [[marks(right) for right in group] for group in sampled],
        [marks(right) for right in greedy],
    )


def test_an_undefined_mark_is_left_out_of_the_mean():
    result = intervals(answers([[1.0, -1.0], [0.0, -1.0], [1.0, 1.0]], [1.0, 1.0, 0.0]))
    assert result["accuracy"].mean == pytest.approx(3 / 6) and result["accuracy"].responses == 6
    assert result["perception"].mean == pytest.approx(3 / 4) and result["perception"].responses == 4
    assert result["length"].mean == result["length"].low == 7
    assert result["greedy_accuracy"].mean == pytest.approx(2 / 3)


def test_marks_of_a_response():
    marks = mark(
        Sample(RIGHT, 22, False), ROW, lambda response, row: {"perception": "3" in response.caption}
    )
    assert marks == {"accuracy": True, "perception": True, "format": True, "length": 22}
    assert mark(Sample("8", 1, False), ROW, lambda response, row: {})["accuracy"] is False


def test_a_task_may_not_redefine_a_mark():
    with pytest.raises(UserError, match="'length' is a mark that every task has"):
        mark(Sample(RIGHT, 22, False), ROW, lambda response, row: {"length": True})


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


def prism_of(folder, output, *overrides):
    return compose_run(
        [
            "stage=eval",
            f"prism.root={folder}",
            f"prism.output={output}",
            "prism.data.max_response_tokens=10",
            f"prism.data.heldout={folder}/data/heldout.parquet",
            "prism.eval.questions=9",
            "prism.eval.samples=2",
            *overrides,
        ]
    )[1]


def test_more_questions_than_there_are(digits_folder, tmp_path):
    with pytest.raises(
        UserError, match=r"prism.eval.questions=100000, but .*heldout.parquet has \d+ rows"
    ):
        read_questions(prism_of(digits_folder, tmp_path, "prism.eval.questions=100000"))


@pytest.mark.integration
def test_two_policies_end_to_end(digits_folder, tmp_path):
    policies = f"prism.eval.policies={{one: {digits_folder}/base, two: {digits_folder}/base}}"
    figures = run_eval(prism_of(digits_folder, tmp_path, policies))
    assert set(figures) == {"one accuracy", "two accuracy"}

    lines = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 9 * 3
    assert [line["sample"] for line in lines[:3]] == [None, 0, 1]
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["questions"], results["samples"], results["seed"]) == (9, 2, 0)
    sampled = [
        line["tokens"] for line in lines if line["policy"] == "two" and line["sample"] is not None
    ]
    assert results["policies"]["two"]["length"]["mean"] == pytest.approx(np.mean(sampled))
    assert results["policies"]["two"]["length"]["responses"] == 18
    assert "| two |" in (tmp_path / "results.md").read_text()
    assert Image.open(tmp_path / "examples.png").width > 800
    progress = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in progress if "step" in line) == 2 * 9 * 3
