"""Samples in wandb and tensorboard, read back from their files. Skipped without the packages."""

import io
import json

import pyarrow.parquet as pq
import pytest
from PIL import Image

from verl_prism.compose import compose_run
from verl_prism.trainer.sample_tables import SampleTables

SAMPLES = [
    {"step": 4, "row": 1, "response": "<caption>A 3.</caption>", "advantage": 0.5, "fault": ""},
    {"step": 4, "row": 0, "response": "broken", "advantage": -1.5, "perception": 2.0},
]


@pytest.fixture
def rows(digits_folder):
    return pq.read_table(digits_folder / "data" / "train.parquet").slice(0, 2).to_pylist()


def tables(digits_folder, tmp_path, *settings: str) -> SampleTables:
    folders = (f"prism.root={digits_folder}", f"prism.output={tmp_path}")
    return SampleTables(compose_run(["stage=align", *folders, *settings])[1])


def test_tensorboard_shows_texts_and_images(digits_folder, rows, tmp_path, monkeypatch):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "tensorboard"))
    log = tables(
        digits_folder, tmp_path, "prism.loggers=[tensorboard]", "prism.log_samples_every=2"
    )
    log.write(SAMPLES, step=4)
    log.write(SAMPLES, step=5)  # not a second one
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (text,) = events.Tensors("samples/0/text_summary")
    assert text.step == 4
    written = text.tensor_proto.string_val[0].decode()
    assert rows[1]["teacher_response"] in written
    assert "**response**: <caption>A 3.</caption>" in written
    assert "**advantage**: 0.5" in written
    (image,) = events.Images("samples/1/image0")
    assert (image.step, image.width, image.height) == (4, 64, 32)


def test_wandb_gets_a_table_with_images(digits_folder, rows, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    run = wandb.init(project="prism", dir=tmp_path)
    log = tables(digits_folder, tmp_path, "prism.loggers=[wandb]", "prism.log_samples_every=4")
    log.write(SAMPLES, step=4)
    run.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/samples_*.table.json")
    table = json.loads(file.read_text())
    lines = [dict(zip(table["columns"], cells, strict=True)) for cells in table["data"]]
    assert [line["advantage"] for line in lines] == [0.5, -1.5]
    assert lines[0]["teacher"] == rows[1]["teacher_response"]
    assert lines[0]["perception"] is None
    assert [line["image0"] for line in lines] == ["Image", "Image"]
    staged = [file.read_bytes() for file in (tmp_path / "data").rglob("staging/*")]
    images = [Image.open(io.BytesIO(content)) for content in staged if b"PNG" in content[:8]]
    assert [image.size for image in images] == [(64, 32)] * 2


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
    tables(digits_folder, tmp_path, *settings).write(SAMPLES, step=4)
    assert not (tmp_path / "tensorboard").exists()
