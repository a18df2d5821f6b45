"""Rows of parquet files, one at a time: order, columns, skipped rows, damaged files, memory."""

import json
import os
import pickle
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_prism.compose import compose_run
from verl_prism.data import arrow_copy
from verl_prism.data.rows import Rows, parquet_files, train_rows
from verl_prism.errors import UserError
from verl_prism.run_folder import RunFolder


def write(path, numbers, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"number": list(numbers), **columns})
    pq.write_table(table, path, row_group_size=7)
    return path


def numbers(rows) -> list[int]:
    return [row["number"] for row in rows]


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Fifty rows in several row groups and several record batches."""
    monkeypatch.setattr(arrow_copy, "BATCH_BYTES", 300)
    texts = [[{"content": "x" * number}] for number in range(50)]
    return write(tmp_path / "data" / "many.parquet", range(50), messages=texts)


def test_rows_are_read_in_any_order(file, tmp_path):
    rows = Rows([file], tmp_path / "cache")
    assert len(rows) == 50
    assert list(rows) == pq.read_table(file).to_pylist()
    for index in np.random.default_rng(0).permutation(50):
        assert rows[int(index)]["number"] == index
    assert rows[-1]["number"] == 49
    with pytest.raises(IndexError):
        rows[50]


def test_a_slice_and_a_pickle_read_the_same_rows(file, tmp_path):
    rows = Rows([file], tmp_path / "cache", columns=["number"])
    assert numbers(rows[10:20:3]) == [10, 13, 16, 19]
    assert numbers(pickle.loads(pickle.dumps(rows[40:]))) == list(range(40, 50))


def test_the_warmup_uses_rows_of_the_whole_file(file, tmp_path):
    rows = Rows([file], tmp_path / "cache", columns=["number"], skipped=range(10))
    assert numbers(rows.evenly(4)) == [10, 20, 30, 40]
    assert numbers(rows.evenly(39)) == list(range(10, 49))
    assert numbers(rows.evenly(40)) == numbers(rows.evenly(100)) == list(range(10, 50))
    data = (f"prism.data.train={file}", f"prism.data.cache={tmp_path / 'cache'}")
    _, prism = compose_run(["stage=warmup", *data, "prism.warmup.prompts=5"])
    assert numbers(train_rows(prism)) == [0, 10, 20, 30, 40]


def test_only_the_wanted_columns_of_several_files(file, tmp_path):
    other = write(tmp_path / "data" / "other.parquet", [50, 51], images=[None, [{"bytes": b"x"}]])
    rows = Rows([file, other], tmp_path / "cache", columns=["number", "images"])
    assert rows[49] == {"number": 49, "images": None}
    assert rows[51] == {"number": 51, "images": [{"bytes": b"x"}]}
    assert rows.place(51) == f"{other}, row 1"
    assert Rows([file, other], tmp_path / "cache").columns == ("number", "messages", "images")


def test_skipped_rows_are_left_out_by_their_number_over_all_files(file, tmp_path):
    other = write(tmp_path / "data" / "other.parquet", range(50, 60))
    rows = Rows([file, other], tmp_path / "cache", skipped=[0, 3, 52])
    assert numbers(rows) == [n for n in range(60) if n not in (0, 3, 52)]
    assert (rows.number(0), rows.place(0)) == (1, f"{file}, row 1")


def test_a_changed_file_is_copied_again(file, tmp_path):
    cache = tmp_path / "cache"
    Rows([file], cache)
    copies = sorted(cache.glob("many-*/"))
    Rows([file], cache)
    assert sorted(cache.glob("many-*/")) == copies
    write(file, [5])
    os.utime(file, (time.time() + 5, time.time() + 5))
    assert numbers(Rows([file], cache)) == [5]


def test_a_copy_reports_each_row_once(file, tmp_path):
    reported = []
    cache = tmp_path / "cache"
    assert not arrow_copy.has_copy(file, cache)
    for _ in range(2):
        arrow_copy.arrow_copy(file, cache, lambda *progress: reported.append(progress))
    assert arrow_copy.has_copy(file, cache)
    assert len(reported) > 5
    assert [done for done, _ in reported] == sorted({done for done, _ in reported})
    assert reported[-1] == (50, 50)


def test_a_failed_copy_leaves_nothing(file, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        arrow_copy.arrow_copy(file, cache, stop)
    assert not list(cache.glob("*/"))


def test_a_stage_that_copies_reports_it_to_the_launcher(file, tmp_path, monkeypatch):
    monkeypatch.setattr("verl_prism.data.rows.NOTE_SECONDS", 0.0)
    overrides = ["stage=rlvr", f"prism.root={tmp_path}", f"prism.data.train={file}"]
    prism = compose_run(overrides)[1]
    train_rows(prism)
    run = RunFolder(prism.output)
    assert not run.metrics.exists(), "no stage runs"
    write(file, range(20))
    run.path.mkdir()
    train_rows(prism)
    notes = [json.loads(line)["note"] for line in run.metrics.read_text().splitlines()]
    assert notes[-1] == "copying the data 20/20"
    train_rows(prism)
    assert len(run.metrics.read_text().splitlines()) == len(notes), "there is a copy"


def test_files_folders_globs_and_lists(tmp_path):
    names = [write(tmp_path / "data" / f"{name}.parquet", [0]) for name in ("a", "b1", "b2")]
    (tmp_path / "data" / "notes.txt").touch()
    assert parquet_files("key", names[0]) == names[:1]
    assert parquet_files("key", tmp_path / "data") == names
    assert parquet_files("key", tmp_path / "data" / "b*.parquet") == names[1:]
    assert parquet_files("key", (names[2], names[0])) == [names[2], names[0]]
    with pytest.raises(UserError, match=r"^key=.*/c\*: no such file$"):
        parquet_files("key", tmp_path / "c*")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^key=.*/empty: no \*.parquet in this folder$"):
        parquet_files("key", tmp_path / "empty")


def test_every_stage_skips_the_rows_of_the_run_folder(file, tmp_path):
    overrides = ["stage=rlvr", f"prism.root={tmp_path}", f"prism.data.train=[{file},{file}]"]
    prism = compose_run(overrides)[1]
    assert len(train_rows(prism)) == 100
    run = RunFolder(prism.output)
    run.path.mkdir()
    run.skipped_rows.write_text(json.dumps({"train": [0, 99], "heldout": []}))
    assert numbers(train_rows(prism)[:2]) == [1, 2]
    assert len(train_rows(prism)) == 98


def test_a_damaged_file_is_named(tmp_path):
    file = write(tmp_path / "bad.parquet", range(20))
    file.write_bytes(b"PAR1" + os.urandom(200) + file.read_bytes()[204:])
    with pytest.raises(UserError, match=r"bad.parquet"):
        list(Rows([file], tmp_path / "cache"))
    file.write_text("no parquet")
    with pytest.raises(UserError, match=r"bad.parquet: not a parquet file"):
        Rows([file], tmp_path / "cache")


def test_a_disk_that_is_too_small_is_named(file, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(arrow_copy.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"prism.data.cache=.*set prism.data.cache to a larger"):
        Rows([file], tmp_path / "cache")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.zip", "a.tar.gz", "A.JSONL"])
def test_another_form_is_refused_with_the_command_that_converts_it(name, tmp_path):
    file = tmp_path / name
    file.write_text("{}")
    with pytest.raises(UserError) as refused:
        parquet_files("prism.data.train", file)
    stem = name.split(".")[0]
    assert str(refused.value) == (
        f"prism.data.train={file} is not parquet; python -m verl_prism.data convert "
        f"source={file} output={tmp_path}/{stem}.parquet converts it"
    )
    with pytest.raises(
        UserError, match=r"no \*\.parquet in this folder; python -m verl_prism\.data"
    ):
        parquet_files("prism.data.train", tmp_path)
