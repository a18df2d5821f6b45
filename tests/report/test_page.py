"""The report: its figures are those of the run's files, whatever state the run is in."""

import base64
import io
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from report_page import unpacked

from verl_prism.compose import compose_run
from verl_prism.report.__main__ import main
from verl_prism.report.page import write_report
from verl_prism.report.page.charts import charts_of
from verl_prism.report.page.runs import MAX_STEPS, display_names
from verl_prism.report.step_samples import add_samples, evenly, keep_samples, read_samples
from verl_prism.run_folder import RunFolder

VALID = "<caption>A {}.</caption><think>1 + 2 = 3</think><answer>3</answer>"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def make_run(digits_folder: Path, folder: Path, stage: str = "align", **prism) -> RunFolder:
    """A run folder as a stage leaves it, without metrics and samples."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    overrides = [f"{key}={value}" for key, value in prism.items()]
    root = f"prism.root={digits_folder}"
    _, settings = compose_run([f"stage={stage}", root, f"prism.output={folder}", *overrides])
    run.config.write_text(yaml.safe_dump({"prism": settings.model_dump(mode="json")}))
    return run


def write_metrics(run: RunFolder, steps: list[dict]) -> None:
    lines = [json.dumps({"step": number, "data": data}) for number, data in enumerate(steps, 1)]
    run.metrics.write_text("\n".join(lines) + "\n")


def report(*runs: RunFolder) -> list[dict]:
    """The data of a report about these runs."""
    write_report([run.path for run in runs], runs[0].report)
    return unpacked(runs[0].report.read_text())["runs"]


@pytest.fixture
def run(digits_folder, tmp_path) -> RunFolder:
    run = make_run(digits_folder, tmp_path / "align")
    steps = [
        {
            "discriminator/perception/accuracy": 0.5 + step / 100,
            "align/invalid": step / 50,
            "timing_s/gen": 2.0,
            "timing_s/update_actor": 1.0,
            "timing_s/step": 3.5,
        }
        for step in range(20)
    ]
    steps[3]["align/fault/nested"] = 0.25
    write_metrics(run, steps)
    samples = [
        {"step": step, "row": step % 8, "response": VALID.format(step), "advantage": step / 10}
        for step in range(1, 21)
    ]
    samples[4] |= {"response": "<caption>open", "advantage": math.nan}
    add_samples(run, samples)
    return run


def test_every_figure_is_that_of_the_runs_metrics(run):
    (data,) = report(run)
    assert data["stage"] == "align"
    assert data["steps"] == list(range(1, 21))
    for line in run.metrics.read_text().splitlines():
        record = json.loads(line)
        for metric, value in record["data"].items():
            shown = data["series"][metric][data["steps"].index(record["step"])]
            assert shown == pytest.approx(value, rel=1e-5)
    assert data["series"]["align/fault/nested"] == [0, 0, 0, 0.25, *[0] * 16]
    assert data["state"]["text"] == f"step 20 of {data['settings']['steps']}"


def test_samples_have_their_question_image_and_teacher(run, digits_folder):
    (data,) = report(run)
    rows = pq.read_table(digits_folder / "data" / "train.parquet").slice(0, 8).to_pylist()
    assert len(data["samples"]) == 20
    for sample in data["samples"]:
        row = rows[sample["row"]]
        question = data["questions"][str(sample["row"])]
        assert question["text"] in row["prompt"][-1]["content"]
        assert question["gold"] == row["reward_model"]["ground_truth"]
        assert question["teacher"]["blocks"]["answer"] in row["teacher_response"]
        thumbnail = Image.open(io.BytesIO(base64.b64decode(question["images"][0])))
        original = Image.open(io.BytesIO(row["images"][0]["bytes"]))
        assert thumbnail.size == original.size  # it is small already
    assert data["samples"][0]["blocks"]["caption"] == "A 1."
    invalid = data["samples"][4]
    assert (invalid["fault"], invalid["text"]) == ("block is not closed", "<caption>open")
    assert invalid["marks"]["advantage"] is None


def test_the_page_asks_for_nothing_else(run):
    report(run)
    html = run.report.read_text()
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html)
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html)


def test_a_run_without_steps_gives_a_page(digits_folder, tmp_path):
    (data,) = report(make_run(digits_folder, tmp_path / "empty"))
    assert (data["steps"], data["samples"], data["charts"]) == ([], [], [])
    assert data["state"]["text"] == "no step yet"


def test_a_killed_run_is_shown_up_to_its_last_whole_line(run):
    for file in (run.metrics, run.step_samples):
        text = file.read_text()
        file.write_text(text[: text.rindex("\n", 0, -1) + 10])
    (data,) = report(run)
    assert data["steps"] == list(range(1, 20))
    assert len(data["samples"]) == 19


def test_numbers_that_are_not_finite_are_gaps(digits_folder, tmp_path):
    run = make_run(digits_folder, tmp_path / "nan")
    losses = [1.0, math.nan, math.inf, 2.0]
    write_metrics(run, [{"discriminator/loss": loss, "gone": math.nan} for loss in losses])
    (data,) = report(run)
    assert data["series"] == {"discriminator/loss": [1.0, None, None, 2.0]}


def test_missing_data_files_are_named(run, digits_folder):
    config = yaml.safe_load(run.config.read_text())
    config["prism"]["data"]["train"] = f"{digits_folder}/gone.parquet"
    run.config.write_text(yaml.safe_dump(config))
    (data,) = report(run)
    assert "Questions and images are missing: prism.data.train" in data["note"]
    assert len(data["samples"]) == 20


def test_long_runs_are_thinned_and_the_page_says_so(digits_folder, tmp_path):
    run = make_run(digits_folder, tmp_path / "long")
    write_metrics(run, [{"train/loss": 1 / step} for step in range(1, 5001)])
    (data,) = report(run)
    assert len(data["steps"]) == MAX_STEPS
    assert data["left_out"] == 5000 - MAX_STEPS
    assert data["steps"][-1] == 5000


def test_many_samples_stay_small_and_are_counted(digits_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("verl_prism.report.page.render.MAX_SAMPLES", 100)
    run = make_run(digits_folder, tmp_path / "many")
    add_samples(run, [{"step": n, "row": n, "response": VALID.format(n)} for n in range(400)])
    (data,) = report(run)
    assert [sample["step"] for sample in data["samples"]] == list(range(0, 400, 4))
    assert (
        data["note"] == "This page has 100 of the 400 lines of step_samples.jsonl, evenly spaced."
    )


def test_an_evaluation_shows_each_policys_responses(digits_folder, tmp_path):
    run = make_run(digits_folder, tmp_path / "eval", "eval")
    lines = []
    for policy in ("SFT", "RL"):
        for sample in (None, 0):
            marks = {"accuracy": policy == "RL", "length": 12}
            record = {"policy": policy, "question": 3, "sample": sample, "text": VALID.format(1)}
            lines.append(json.dumps(record | {"gold": "3", "fault": None, "marks": marks}))
    run.responses.write_text("\n".join(lines) + "\n")
    run.results_table.write_text("| policy |")
    (data,) = report(run)
    marks = [sample["marks"] for sample in data["samples"]]
    assert [(each["policy"], each["decoding"], each["accuracy"]) for each in marks] == [
        ("SFT", "greedy", 0),
        ("SFT", "sample 0", 0),
        ("RL", "greedy", 1),
        ("RL", "sample 0", 1),
    ]
    assert data["results"] == "| policy |"
    assert set(data["questions"]) == {"3"}


def test_a_warmup_shows_its_rollouts(digits_folder, tmp_path):
    run = make_run(digits_folder, tmp_path / "warmup", "warmup")
    lines = [json.dumps({"row": row, "responses": [VALID, "no"]}) for row in (5, 2)]
    run.rollouts.write_text("\n".join(lines) + "\n")
    (data,) = report(run)
    assert [sample["row"] for sample in data["samples"]] == [5, 5, 2, 2]
    scores = {"perception": -0.5, "teacher_perception": 1.5}
    add_samples(run, [{"step": 1, "row": 3, "response": VALID.format(1), **scores}])
    (data,) = report(run)
    assert [sample["marks"] for sample in data["samples"]] == [scores]


def test_sft_shows_demonstrations(digits_folder, tmp_path):
    run = make_run(digits_folder, tmp_path / "sft", "sft")
    row = pq.read_table(digits_folder / "data" / "sft.parquet").slice(4, 1).to_pylist()[0]
    add_samples(run, [{"step": 1, "row": 4, "response": row["messages"][-1]["content"]}])
    (data,) = report(run)
    assert data["note"] == ""
    assert data["samples"][0]["blocks"]["answer"] in row["messages"][-1]["content"]
    question = data["questions"]["4"]
    assert question["text"] in row["messages"][1]["content"]
    assert question["text"]
    assert len(question["images"]) == 1


def test_several_runs_are_told_apart(digits_folder, tmp_path, capsys):
    runs = [make_run(digits_folder, tmp_path / seed / "align") for seed in ("1", "2")]
    output = tmp_path / "both.html"
    assert main([*(str(run.path) for run in runs), "--output", str(output)]) == 0
    assert f"{output}: 0.0 MB\n" in capsys.readouterr().out
    assert [run["name"] for run in unpacked(output.read_text())["runs"]] == ["1/align", "2/align"]
    assert display_names([Path("/a/b"), Path("/a/b")]) == ["/a/b", "/a/b"]


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert f"{tmp_path} is not the folder of a run" in capsys.readouterr().err


def test_samples_after_a_checkpoint_are_removed_when_a_run_resumes_there(run):
    keep_samples(run, last=7)
    assert [sample["step"] for sample in read_samples(run)] == list(range(1, 8))
    keep_samples(RunFolder(run.path / "other"), last=7)  # has none


def test_evenly_keeps_the_order():
    assert evenly(range(10), 4) == [0, 2, 5, 7]
    assert evenly(range(3), 4) == [0, 1, 2]
    assert evenly([], 4) == []


def test_the_first_name_that_a_run_has_is_drawn():
    charts = charts_of({"loss", "grad_norm", "val-core/digits/acc/mean@1", "timing_s/gen"})
    lines = {chart["title"]: chart["lines"] for chart in charts}
    assert lines["Loss"] == {"discriminator": "loss"}
    assert lines["Held-out accuracy"] == {"digits/acc/mean@1": "val-core/digits/acc/mean@1"}
    assert lines["Seconds per step, by phase"] == {"gen": "timing_s/gen"}


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_it_without_an_error(run, tmp_path):
    report(run)
    for tab, expected in (
        ("charts", "<svg"),
        ("samples", "20 of 20 samples"),
        ("settings", "std_floor"),
    ):
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        done = subprocess.run(
            [
                BROWSER,
                *options,
                "--virtual-time-budget=5000",
                "--dump-dom",
                f"{run.report.as_uri()}#{tab}",
            ],
            env=os.environ | {"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "CONSOLE" not in done.stderr
        assert expected in done.stdout
