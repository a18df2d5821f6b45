"""Rows in and out of parquet files."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_prism.data.row_files import common_schema, read_rows, row_id, row_writer, with_columns
from verl_prism.data.schema import schema
from verl_prism.errors import UserError

ROW = {"id": "a", "prompt": [{"role": "user", "content": "?"}], "images": [{"bytes": b"x" * 9000}]}


def test_rows_are_written_in_small_groups_and_read_back(tmp_path):
    file = tmp_path / "new" / "rows.parquet"
    rows = [ROW | {"id": str(number)} for number in range(12_000)]
    with row_writer(file, schema(["id", "prompt", "images"])) as writer:
        for row in rows:
            writer.write(row)
        assert not file.exists()
    assert pq.read_metadata(file).num_row_groups >= 3
    assert list(read_rows([file])) == rows


def test_an_exception_leaves_the_old_file(tmp_path):
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"old")

    def write_and_fail() -> None:
        with row_writer(file, schema(["id"])) as writer:
            writer.write(ROW)
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_no_rows_make_a_file_without_rows(tmp_path):
    with row_writer(tmp_path / "rows.parquet", schema(["id"])):
        pass
    assert pq.read_metadata(tmp_path / "rows.parquet").num_rows == 0


def test_the_id_is_the_rows_or_its_contents():
    assert row_id(ROW) == "a"
    nameless = ROW | {"id": None}
    assert row_id(nameless) == row_id(dict(nameless))
    assert row_id(nameless) != row_id(nameless | {"images": [{"bytes": b"y"}]})


def test_columns_that_do_not_fit_together_name_the_files(tmp_path):
    for name, kind in (("a", pa.string()), ("b", pa.int64())):
        pq.write_table(pa.table({"id": pa.array([], kind)}), tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, .*b\.parquet: the columns do not fit"):
        common_schema([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_a_column_is_added_or_replaced():
    source = schema(["id", "images"])
    changed = with_columns(source, {"id": pa.int64(), "teacher_response": pa.string()})
    assert changed.names == ["id", "images", "teacher_response"]
    assert changed.field("id").type == pa.int64()
