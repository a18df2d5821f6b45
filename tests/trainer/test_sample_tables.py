"""Metrics and samples in every logger that shows samples, read back from its files.

swanlab, mlflow and trackio are skipped if they are not installed.
"""

import io
import json
import sqlite3
from pathlib import Path

import pytest
from logged import assert_logged, by_step, log_below, tensorboard_events
from PIL import Image

from verl_prism.compose import compose_run
from verl_prism.data.rows import train_rows
from verl_prism.launcher.logger_files import prepare_loggers
from verl_prism.run_folder import RunFolder
from verl_prism.trainer.sample_tables import SampleTables
from verl_prism.trainer.tracking import TrackedMetrics

STEPS = (1, 2, 3, 4)
HELDOUT = {"heldout/accuracy": 0.75}


def metrics(step: int) -> dict[str, float]:
    return {"loss": 1 / step, "perception/margin": step / 10}


def samples(step: int) -> list[dict]:
    valid = {"response": f"<caption>A {step}.</caption>", "advantage": 0.5, "fault": ""}
    broken = {"response": "broken", "perception": 2.0, "fault": "block is missing"}
    return [{"step": step, "row": 1} | valid, {"step": step, "row": 0} | broken]


@pytest.fixture
def rows(digits_folder):
    """The first two rows that the warm-up uses."""
    _, prism = compose_run(["stage=warmup", f"prism.root={digits_folder}"])
    return list(train_rows(prism)[:2])


@pytest.fixture
def log(digits_folder, tmp_path, monkeypatch):
    """Log four steps as the warm-up does, and the samples of every other one.

    Nothing is written to the home or the working directory.
    """
    output, home, work = tmp_path / "output", tmp_path / "home", tmp_path / "work"
    for folder in (output, home, work):
        folder.mkdir()
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    log_below(RunFolder(output), monkeypatch)
    monkeypatch.setenv("SWANLAB_MODE", "offline")

    def log_steps(logger: str) -> RunFolder:
        folders = (f"prism.root={digits_folder}", f"prism.output={output}")
        settings = (f"prism.loggers=[{logger}]", "prism.log_samples_every=2")
        _, prism = compose_run(["stage=warmup", *folders, *settings])
        prepare_loggers(prism)
        with TrackedMetrics(prism) as log:
            for step in STEPS:
                log.step(step, metrics(step))
                log.samples(step, samples(step))
            log.result(4, HELDOUT)
        outside = [*home.rglob("*"), *work.rglob("*")]
        assert not outside
        return RunFolder(output)

    return log_steps


def test_tensorboard_and_wandb_get_metrics_and_samples(log, rows):
    run = log("tensorboard,wandb")
    assert_logged(run, by_step([*samples(2), *samples(4)]), {4: HELDOUT})
    events = tensorboard_events(run.path / "tensorboard" / "samples")
    text = events.Tensors("samples/0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert f"**teacher**: {rows[1]['teacher_response']}" in text
    assert "**question**: What is the sum?" in text
    images = [events.Images(f"samples/{number}/image0")[0] for number in range(2)]
    assert [(image.width, image.height) for image in images] == [(64, 32)] * 2
    staged = [file.read_bytes() for file in run.path.glob("wandb/data/artifacts/staging/*")]
    pictures = [Image.open(io.BytesIO(content)) for content in staged if b"PNG" in content[:8]]
    assert [picture.size for picture in pictures] == [(64, 32)] * 4


def test_tensorboard_shows_metrics_of_steps_after_samples(log, digits_folder, tmp_path):
    """It follows only the latest file of a folder while a run goes on."""
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path / "output" / "tensorboard"
    metrics = SummaryWriter(folder)
    metrics.add_scalar("loss", 1.0, 1)
    metrics.flush()
    settings = ("prism.loggers=[tensorboard]", "prism.log_samples_every=1")
    root = (f"prism.root={digits_folder}", f"prism.output={folder.parent}")
    SampleTables(compose_run(["stage=align", *root, *settings])[1]).keep(samples(1), 1)
    events = tensorboard_events(folder)
    metrics.add_scalar("loss", 0.5, 2)
    metrics.flush()
    assert [event.step for event in events.Reload().Scalars("loss")] == [1, 2]


def test_swanlab_gets_metrics_and_samples(log, rows):
    swanlab_log = pytest.importorskip("swanlab.sdk.internal.core_python.store")
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    run = log("swanlab")
    (folder,) = (run.path / "swanlog").glob("run-*")
    (file,) = folder.glob("run-*.swanlab")
    reader = swanlab_log.DataStoreReader()
    reader.open(file)
    losses = []
    files = {}
    while (content := reader.scan()) is not None:
        record = Record.FromString(content)
        if record.scalar.key == "loss":
            losses.append((record.scalar.step, record.scalar.value.number))
        if record.media.key:
            files[record.media.key, record.media.step] = record.media.value.items[0].filename
    assert losses == [(step, 1 / step) for step in STEPS]
    text = (folder / "media" / "text" / files["samples/1", 4]).read_text()
    assert f"**teacher**: {rows[0]['teacher_response']}" in text
    assert "**perception**: 2.0" in text
    assert Image.open(folder / "media" / "image" / files["samples/0/image0", 2]).size == (64, 32)


def test_mlflow_gets_metrics_and_samples(log, rows):
    mlflow = pytest.importorskip("mlflow")
    run = log("mlflow")
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("prism")
    (logged,) = client.search_runs([experiment.experiment_id])
    losses = client.get_metric_history(logged.info.run_id, "loss")
    assert [(each.step, each.value) for each in losses] == [(step, 1 / step) for step in STEPS]
    folder = Path(logged.info.artifact_uri)
    assert folder.is_relative_to(run.path)
    table = json.loads((folder / "samples" / "step_4.json").read_text())
    lines = [dict(zip(table["columns"], cells, strict=True)) for cells in table["data"]]
    assert [line["response"] for line in lines] == [each["response"] for each in samples(4)]
    assert lines[0]["teacher"] == rows[1]["teacher_response"]
    assert lines[0]["advantage"] == 0.5
    assert Image.open(folder / lines[1]["image0"]["filepath"]).size == (64, 32)


def test_trackio_gets_metrics_and_samples(log, rows):
    pytest.importorskip("trackio")
    folder = log("trackio").path / "trackio"
    with sqlite3.connect(folder / "prism.db") as database:
        found = database.execute("select step, metrics from metrics order by id").fetchall()
    logged = [(step, json.loads(values)) for step, values in found]
    losses = [(step, values["loss"]) for step, values in logged if "loss" in values]
    assert losses == [(step, 1 / step) for step in STEPS]
    tables = {step: values["samples"]["_value"] for step, values in logged if "samples" in values}
    assert tables.keys() == {2, 4}
    assert [line["response"] for line in tables[4]] == [each["response"] for each in samples(4)]
    assert tables[4][1]["teacher"] == rows[0]["teacher_response"]
    assert Image.open(folder / "media" / tables[2][0]["image0"]["file_path"]).size == (64, 32)


@pytest.mark.parametrize(
    "settings",
    [
        ("prism.loggers=[tensorboard]", "prism.log_samples_every=null"),
        ("prism.loggers=[console]", "prism.log_samples_every=1"),
    ],
)
def test_nothing_is_sent_if_it_is_off_or_no_logger_can_show_it(
    digits_folder, tmp_path, monkeypatch, settings
):
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "tensorboard"))
    folders = (f"prism.root={digits_folder}", f"prism.output={tmp_path}")
    tables = SampleTables(compose_run(["stage=align", *folders, *settings])[1])
    tables.keep(samples(4), 4)
    tables.send(samples(4), 4)
    assert not (tmp_path / "tensorboard").exists()
    assert len((tmp_path / "step_samples.jsonl").read_text().splitlines()) == 2
