"""Rows of parquet files, read one at a time. Memory does not grow with the files."""

import glob
import hashlib
import json
import shlex
import time
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from verl_prism.config import DataFiles, Prism
from verl_prism.data.arrow_copy import BATCHES, STARTS, Progress, arrow_copy
from verl_prism.errors import UserError
from verl_prism.report.metrics import MetricsLog
from verl_prism.run_folder import RunFolder

Row = dict[str, Any]
SPLITS = ("train", "heldout")
NOTE_SECONDS = 10.0  # between two reports of a copy's progress to the launcher
RAW_SUFFIXES = (
    *(".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz"),
    *(".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz"),
)


def train_rows(prism: Prism, columns: Sequence[str] | None = None) -> "Rows":
    """Return the rows of `prism.data.train` without those that the check has filtered out.

    Stage warmup uses `prism.warmup.prompts` of them, evenly spaced: files are often sorted by
    source.
    """
    rows = _split_rows(prism, "train", columns)
    return rows.evenly(prism.warmup.prompts) if prism.stage == "warmup" else rows


def heldout_rows(prism: Prism, columns: Sequence[str] | None = None) -> "Rows":
    """Return the rows of `prism.data.heldout` without those that the check has filtered out."""
    return _split_rows(prism, "heldout", columns)


def _split_rows(prism: Prism, split: str, columns: Sequence[str] | None) -> "Rows":
    files = parquet_files(f"prism.data.{split}", getattr(prism.data, split))
    run = RunFolder(prism.output)
    return Rows(files, prism.data.cache, columns, skipped_rows(run)[split], CopyNotes(run))


class CopyNotes:
    """Reports the progress of copies to the launcher, which ends a stage that reports nothing.

    The launcher's host has made the copies before the stage starts. Other hosts make their own if
    they do not share `prism.data.cache`.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Report the rows so far, unless the last report was a moment ago."""
        now = time.monotonic()
        if now < self._last + NOTE_SECONDS or not self._run.path.is_dir():
            return
        self._last = now
        with MetricsLog(self._run) as log:
            log.note(f"copying the data {done}/{total}")


def parquet_files(key: str, source: DataFiles) -> list[Path]:
    """Return the parquet files that `source` names: files, folders, globs, or a list of them.

    The files of a folder (`*.parquet`) or a glob are in the order of their names.

    Raises:
        UserError: a path names no file.
    """
    files: list[Path] = []
    for path in [source] if isinstance(source, Path) else source:
        found = _files_at(path)
        if not found:
            kind = "no *.parquet in this folder" if path.is_dir() else "no such file"
            raise UserError(f"{key}={path}: {kind}{_raw_hint(path)}")
        for file in found:
            if file.name.lower().endswith(RAW_SUFFIXES):
                raise UserError(f"{key}={file} is not parquet; {convert_command(file)} converts it")
        files += found
    return files


def convert_command(source: Path) -> str:
    """Return the command that turns a file or folder into the parquet that the stages read."""
    stem = source.name.split(".")[0] or "data"
    output = f"{stem}.converted" if source.suffix == ".parquet" else stem
    file = source.with_name(f"{output}.parquet")
    return (
        f"python -m verl_prism.data convert source={shlex.quote(str(source))} "
        f"output={shlex.quote(str(file))}"
    )


def _raw_hint(folder: Path) -> str:
    """Return what to do about a folder that holds files in other forms."""
    names = [path.name.lower() for path in folder.iterdir()] if folder.is_dir() else []
    if any(name.endswith((*RAW_SUFFIXES, ".arrow")) for name in names):
        return f"; {convert_command(folder)} converts it"
    return ""


def _files_at(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    pattern = str(path / "*.parquet") if path.is_dir() else str(path)
    return [Path(name) for name in sorted(glob.glob(pattern)) if Path(name).is_file()]


def skipped_rows(run: RunFolder) -> dict[str, list[int]]:
    """Return the numbers of the rows that a run leaves out, of the training and held-out data."""
    if not run.skipped_rows.is_file():
        return {split: [] for split in SPLITS}
    return json.loads(run.skipped_rows.read_text(encoding="utf-8"))


class Rows(Sequence[Row]):
    """The rows of parquet files, one file after another.

    A row is read when it is asked for, in any order; a slice reads nothing. Every row has the same
    columns: a value is None if the row's file lacks the column. The object can be pickled, and
    used after a fork.

    Args:
        files: parquet files, which may have different columns.
        cache: folder for copies of the files that can be read by row (`prism.data.cache`).
        columns: which columns to read; None: all that a file has.
        skipped: numbers of rows to leave out, counted over all files from 0.
        on_copy: is given the rows so far and in total while a file is copied.

    Raises:
        UserError: a file cannot be read or copied.
    """

    def __init__(
        self,
        files: Sequence[Path],
        cache: Path,
        columns: Sequence[str] | None = None,
        skipped: Sequence[int] = (),
        on_copy: Progress = lambda done, total: None,
    ) -> None:
        copies = [arrow_copy(file, cache, on_copy) for file in files]
        self._files = [
            _CopiedFile(file, folder, columns) for file, folder in zip(files, copies, strict=True)
        ]
        self._starts = np.cumsum([0, *(len(file) for file in self._files)])
        if columns is None:
            columns = list(dict.fromkeys(name for file in self._files for name in file.columns))
        self.columns = tuple(columns)
        self._numbers = np.delete(np.arange(self._starts[-1], dtype=np.int64), list(skipped))

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> "Rows": ...

    def __getitem__(self, index: int | slice) -> "Row | Rows":
        if isinstance(index, slice):
            return self.take(self._numbers[index])
        file, number = self._locate(index)
        row = file.row(number)
        return {name: row.get(name) for name in self.columns}

    def number(self, index: int) -> int:
        """Return the number of a row in the files, with the rows that are left out counted."""
        return int(self._numbers[index])

    def digest(self) -> str:
        """Return a digest of the rows' numbers in the files, in their order."""
        return hashlib.sha256(self._numbers.tobytes()).hexdigest()[:16]

    def place(self, index: int) -> str:
        """Return file and number of a row, for messages."""
        file, number = self._locate(index)
        return f"{file.source}, row {number}"

    def take(self, numbers: Sequence[int] | np.ndarray) -> "Rows":
        """Return only the rows with these numbers in the files, in this order."""
        taken = copy(self)
        taken._numbers = np.asarray(numbers, dtype=np.int64)
        return taken

    def evenly(self, count: int) -> "Rows":
        """Return at most `count` rows, evenly spaced."""
        if count >= len(self):
            return self
        chosen = np.arange(count) * len(self) // count
        return self.take(self._numbers[chosen])

    def column(self, name: str) -> "Column":
        """Return the values of a column, each read when it is asked for."""
        return Column(self, name)

    def _locate(self, index: int) -> "tuple[_CopiedFile, int]":
        number = self.number(index)
        file = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._files[file], number - int(self._starts[file])


class Column(Sequence[Any]):
    """The values of one column of rows. A value is None if the row's file lacks the column."""

    def __init__(self, rows: Rows, name: str) -> None:
        self._rows = rows
        self._name = name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:  # type: ignore[override]
        return self._rows[index][self._name]


class _CopiedFile:
    """The copy of one parquet file. The last record batch stays in memory for its other rows."""

    def __init__(self, source: Path, folder: Path, columns: Sequence[str] | None) -> None:
        self.source = source
        self._path = folder / BATCHES
        self._starts = np.load(folder / STARTS)  # first row of each batch, and the number of rows
        with self._open() as reader:
            present = reader.schema.names
        self.columns = [name for name in present if columns is None or name in columns]
        self._fields = [present.index(name) for name in self.columns]
        self._last: tuple[int, pa.RecordBatch] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row(self, number: int) -> Row:
        """Return a row of this file."""
        index = int(np.searchsorted(self._starts, number, side="right")) - 1
        offset = number - int(self._starts[index])
        return self._batch(index).slice(offset, 1).to_pylist()[0]

    def _batch(self, index: int) -> pa.RecordBatch:
        if self._last is None or self._last[0] != index:
            self._last = (index, self._reader.get_batch(index))
        return self._last[1]

    @cached_property
    def _reader(self) -> pa.ipc.RecordBatchFileReader:
        return self._open(pa.ipc.IpcReadOptions(included_fields=self._fields, use_threads=False))

    def _open(self, options: pa.ipc.IpcReadOptions | None = None) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(pa.OSFile(str(self._path)), options=options)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open file."""
        state = self.__dict__ | {"_last": None}
        state.pop("_reader", None)
        return state
