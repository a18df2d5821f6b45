"""Stage eval from given responses to its results, without vLLM."""

import json
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_prism.compose import compose_run
from verl_prism.rollout.sampling import Sample
from verl_prism.run_folder import RunFolder
from verl_prism.stages import evaluation
from verl_prism.stages.evaluation import run_eval

QUESTIONS = 60
INVALID = "no blocks"


@pytest.fixture
def heldout():
    """Questions without images, with the teacher's responses."""
    return pa.Table.from_pylist([question_row(number) for number in range(QUESTIONS + 5)])


def question_row(number: int) -> dict:
    a, b = number % 7, number % 5
    caption = f"<caption>Left a {a}, right a {b}.</caption>"
    return {
        "prompt": [{"role": "user", "content": f"What is {a} + {b}?"}],
        "data_source": "sums",
        "reward_model": {"style": "rule", "ground_truth": str(a + b)},
        "teacher_response": f"{caption}<think>Add: {a} + {b}.</think><answer>{a + b}</answer>",
    }


def evaluate(folder, table, texts, monkeypatch, *overrides: str) -> dict:
    """Run stage eval and return results.json. texts: {policy: its responses[Q][1 + S]}."""
    heldout = folder / "heldout.parquet"
    pq.write_table(table, heldout)
    policies = ", ".join(f"{name}: {folder}" for name in texts)
    _, prism = compose_run(
        [
            "stage=eval",
            f"prism.root={folder}",
            f"prism.data.heldout={heldout}",
            f"prism.eval.policies={{{policies}}}",
            f"prism.eval.max_questions={QUESTIONS}",
            "prism.eval.bootstrap=100",
            *overrides,
        ]
    )

    run = RunFolder(prism.output)
    run.path.mkdir(exist_ok=True)

    def write_journals(*_) -> None:
        for name, responses in texts.items():
            write_journal(run.samples(name), responses)

    monkeypatch.setattr(evaluation, "sample_policies", write_journals)
    run_eval(prism)
    return json.loads(run.results.read_text())


def write_journal(file, responses) -> None:
    """Write a journal whose rows were not finished in their order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for row, given in reversed(list(enumerate(responses))):
        samples = [asdict(Sample(text, 20, False)) for text in given]
        lines.append(json.dumps({"row": row, "responses": samples}) + "\n")
    file.write_text("".join(lines))


def two_policies(teacher: list[str]) -> dict[str, list[list[str]]]:
    """One words its captions in its own way and is always wrong; one repeats the teacher."""
    other = [text.replace("Left", "Here").replace("<answer>", "<answer>9") for text in teacher]
    return {
        "other": [[INVALID, text, text, INVALID, text] for text in other],
        "copy": [[text] * 5 for text in teacher],
    }


def test_results_of_two_policies(tmp_path, heldout, monkeypatch):
    texts = two_policies(heldout["teacher_response"].to_pylist()[:QUESTIONS])
    results = evaluate(tmp_path, heldout, texts, monkeypatch)
    baseline = results["teacher"]
    assert (baseline["responses"], baseline["invalid"], baseline["missing"]) == (QUESTIONS, 0, 0)
    other, copy = (results["policies"][name] for name in ("other", "copy"))
    assert (other["teacher"]["invalid"], copy["teacher"]["invalid"]) == (QUESTIONS, 0)
    assert other["teacher"]["probe"]["perception"]["accuracy"]["mean"] == 1
    assert copy["teacher"]["probe"]["perception"]["accuracy"]["mean"] == 0.5
    assert all(proxy["mean"] == 0 for proxy in copy["teacher"]["proxies"].values())
    assert [other["pass_at_k"][k]["mean"] for k in "124"] == [0, 0, 0]
    (found,) = results["comparisons"]
    assert (found["policy"], found["against"]) == ("copy", "other")
    assert list(found["marks"]) == [
        *("accuracy", "format", "length", "greedy_accuracy", "pass@2", "pass@4"),
    ]
    assert found["marks"]["accuracy"]["difference"] == 1
    assert found["marks"]["format"]["difference"] == pytest.approx(0.25)
    table = (tmp_path / "eval" / "results.md").read_text()
    assert "| copy minus other |" in table
    assert evaluate(tmp_path, heldout, texts, monkeypatch) == results
    other_seed = evaluate(tmp_path, heldout, texts, monkeypatch, "prism.seed=1")
    assert other_seed["policies"]["copy"]["accuracy"] == copy["accuracy"]


def test_questions_without_a_teacher(tmp_path, heldout, monkeypatch):
    teacher = heldout["teacher_response"].to_pylist()[:QUESTIONS]
    texts = {"copy": [[text] * 5 for text in teacher]}
    results = evaluate(tmp_path, heldout.drop_columns(["teacher_response"]), texts, monkeypatch)
    assert results["teacher"] is None
    assert results["comparisons"] == []
    assert "teacher" not in results["policies"]["copy"]
    assert "no column teacher_response" in (tmp_path / "eval" / "results.md").read_text()
