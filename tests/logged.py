"""What a run's loggers have received, read back from the files of tensorboard and wandb."""

import json
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from verl_prism.launcher.logger_files import logger_environment
from verl_prism.report.metrics import read_records
from verl_prism.report.step_samples import ROW
from verl_prism.run_folder import RunFolder

LOGGERS = ("prism.loggers=[tensorboard,wandb]", "prism.log_samples_every=1")
Samples = Mapping[int, Sequence[Mapping[str, Any]]]  # by step

BLOCK = 32768  # bytes
HEADER = 7  # bytes, of the file and of each part of a record
WHOLE, LAST = 1, 4  # kinds of a part


def log_below(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loggers of this process write below a run's folder, as those of a stage do."""
    wandb.teardown()  # it reads its variables once
    for name, value in logger_environment(run).items():
        monkeypatch.setenv(name, value)


def assert_logged(run: RunFolder, samples: Samples, metrics: Mapping[int, Mapping] = ()) -> None:
    """Check that both loggers have the run's metrics and these samples, with an image each.

    metrics: of each step that is not in metrics.jsonl.
    """
    expected = defaultdict(dict)
    for record in read_records(run):
        if "data" in record:
            expected[record["step"]] |= record["data"]
    for step, values in dict(metrics).items():
        expected[step] |= values
    expected = {step: values for step, values in expected.items() if values}
    assert expected
    for logged in (tensorboard_metrics(run), wandb_metrics(run)):
        for step, values in expected.items():
            for name, value in values.items():
                assert logged[step][name] == pytest.approx(value, rel=1e-5, nan_ok=True), name
    assert samples
    in_tensorboard, in_wandb = tensorboard_samples(run), wandb_samples(run)
    assert in_tensorboard.keys() == in_wandb.keys() == samples.keys()
    for step, given in samples.items():
        assert len(in_tensorboard[step]) == len(in_wandb[step]) == len(given)
        for sample, text, line in zip(given, in_tensorboard[step], in_wandb[step], strict=True):
            assert line["image0"] == "Image"
            assert line["question"]
            for name, value in sample.items():
                assert f"**{name}**: {value}" in text
                assert line[name] == value
            assert f"**teacher**: {line['teacher']}" in text, sample[ROW]


def by_step(samples: Sequence[Mapping[str, Any]]) -> Samples:
    """Return the samples of a file by their step."""
    steps = defaultdict(list)
    for sample in samples:
        steps[sample["step"]].append(sample)
    return dict(steps)


def tensorboard_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0, "scalars": 0})
    return events.Reload()


def tensorboard_metrics(run: RunFolder) -> dict[int, dict[str, float]]:
    events = tensorboard_events(run.path / "tensorboard")
    steps = defaultdict(dict)
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            steps[event.step][name] = event.value
    return steps


def tensorboard_samples(run: RunFolder) -> dict[int, list[str]]:
    """Return the text of each sample by step. Each has an image."""
    events = tensorboard_events(run.path / "tensorboard" / "samples")
    steps = defaultdict(list)
    for number in range(len(events.Tags()["tensors"])):
        for event in events.Tensors(f"samples/{number}/text_summary"):
            steps[event.step].append(event.tensor_proto.string_val[0].decode())
        assert [image.step for image in events.Images(f"samples/{number}/image0")] == [
            event.step for event in events.Tensors(f"samples/{number}/text_summary")
        ]
    return steps


def wandb_metrics(run: RunFolder) -> dict[int, dict[str, Any]]:
    """Return what was logged in each step."""
    steps = defaultdict(dict)
    for record in wandb_records(wandb_folder(run)):
        if record.WhichOneof("record_type") == "history":
            values = {}
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                values[name] = json.loads(item.value_json)
            steps[values["_step"]] |= values
    return steps


def wandb_samples(run: RunFolder) -> dict[int, list[dict[str, Any]]]:
    """Return the lines of the table of each step that has one."""
    files = wandb_folder(run) / "files"
    steps = {}
    for step, values in wandb_metrics(run).items():
        if "samples/path" in values:
            table = json.loads((files / values["samples/path"]).read_text())
            columns = table["columns"]
            steps[step] = [dict(zip(columns, cells, strict=True)) for cells in table["data"]]
    return steps


def wandb_folder(run: RunFolder) -> Path:
    (folder,) = run.path.glob("wandb/offline-run-*")
    return folder


def wandb_records(folder: Path) -> Iterator[Record]:
    """Yield the records of a run that wandb has kept for a later upload.

    Its file is a log as LevelDB writes it: blocks of parts, each with a checksum, its length and
    its kind; a record may be in several parts.
    """
    (file,) = folder.glob("run-*.wandb")
    content = file.read_bytes()
    place = HEADER
    record = b""
    while place + HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        place += HEADER
        record += content[place : place + length]
        place += length
        if kind in (WHOLE, LAST):
            yield Record.FromString(record)
            record = b""
