"""Files that a command writes: complete or absent, with errors that blame the right file."""

import json

import pyarrow as pa
import pytest

from verl_prism.data.outputs import json_lines, parquet_output
from verl_prism.data.row_files import row_writer
from verl_prism.errors import UserError

SCHEMA = pa.schema({"id": pa.string()})
# Each write to this device fails as on a full disk.
FULL = "/dev/full"


def test_lines_appear_at_the_end(tmp_path):
    file = tmp_path / "new" / "lines.jsonl"
    with json_lines(file) as lines:
        lines.add({"text": "é\ud800"})  # a surrogate without its partner cannot be encoded
        assert not file.exists()
    assert json.loads(file.read_text(encoding="utf-8")) == {"text": "é\ud800"}


@pytest.mark.parametrize("output", [json_lines, lambda file: parquet_output(file, SCHEMA)])
def test_the_blocks_own_error_is_not_blamed_on_the_file(tmp_path, output):
    """For example, a reward function does not find a file of its own."""

    def read_another_file() -> None:
        with output(tmp_path / "output"):
            (tmp_path / "missing").read_text()

    with pytest.raises(FileNotFoundError, match="missing"):
        read_another_file()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/lines\.jsonl: cannot be written: File exists"),
        json_lines(tmp_path / "file" / "lines.jsonl"),
    ):
        pass


@pytest.fixture
def full_disk(monkeypatch, tmp_path):
    """Unfinished files are links to a device without space."""

    def link(target):
        unfinished = target.with_name("unfinished")
        unfinished.symlink_to(FULL)
        return unfinished

    monkeypatch.setattr("verl_prism.data.outputs.unfinished_name", link)
    return tmp_path


@pytest.mark.parametrize("count", [1, 10_000])  # fails at the end, or while lines are added
def test_a_full_disk_is_named_for_lines(full_disk, count):
    def fill() -> None:
        with json_lines(full_disk / "lines.jsonl") as lines:
            for _ in range(count):
                lines.add({"text": "x" * 100})

    with pytest.raises(UserError, match=r"lines\.jsonl: cannot be written: No space left"):
        fill()


@pytest.mark.parametrize("count", [1, 100_000])
def test_a_full_disk_is_named_for_rows(full_disk, count):
    def fill() -> None:
        with row_writer(full_disk / "rows.parquet", SCHEMA) as writer:
            for number in range(count):
                writer.write({"id": str(number)})

    with pytest.raises(UserError, match=r"rows\.parquet: cannot be written: .*No space left"):
        fill()
