"""The command check: one pass over the rows, then duplicates and leaks, then the clean copy."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from verl_prism.errors import UserError
from verl_prism.prepare.check.copies import planned_copies
from verl_prism.prepare.check.files import SourceFile, read_files, source_files
from verl_prism.prepare.check.findings import (
    Finding,
    Findings,
    findings,
    note_lines,
    problem_lines,
)
from verl_prism.prepare.check.lengths import Lengths
from verl_prism.prepare.check.repeats import Repeat, RowKeys, repeats
from verl_prism.prepare.check.rows import BatchResult, RowInspector
from verl_prism.prepare.check.settings import Settings
from verl_prism.prepare.parallel import file_batches, map_batches
from verl_prism.prepare.progress import progress
from verl_prism.prepare.report import Report

PROBLEMS = "problems.jsonl"
PICTURE = "lengths.png"


class Check:
    """The state of a check.

    broken: for each split, whether each row is left out of the clean copy.
    """

    def __init__(self, files: list[SourceFile], found: Findings) -> None:
        splits = list(dict.fromkeys(file.split for file in files))
        self.files = files
        self.found = found
        self.lengths = Lengths(splits)
        self.keys = {split: RowKeys() for split in splits}
        rows = {split: sum(file.rows for file in files if file.split == split) for split in splits}
        self.broken = {split: np.zeros(rows[split], bool) for split in splits}

    def add(self, result: BatchResult) -> None:
        """Add what was found in a batch."""
        file = self.files[result.source]
        for finding in result.findings:
            self._add_finding(file, finding)
        self.keys[file.split].extend(result.keys, file.first)
        self.lengths.add(file.split, result.lengths)

    def add_file(self, file: SourceFile) -> None:
        """Add what is wrong with a whole file."""
        if file.finding is not None:
            self._add_finding(file, file.finding)

    def add_repeats(self) -> None:
        """Add duplicates and leaks, after all rows."""
        ids = _Ids()
        for repeat in repeats(self.keys):
            file = self._file(repeat.split, repeat.row)
            row = repeat.row - file.first
            text = f"{repeat.reason}: {self._place(repeat)}"
            finding = Finding(row, ids.of(file.path, row), [(repeat.reason, text)])
            self._add_finding(file, finding)

    def _add_finding(self, file: SourceFile, finding: Finding) -> None:
        self.found.add(file.split, file.path, finding)
        if finding.problems:
            first = file.first + finding.row
            end = min(first + finding.rows, file.first + file.rows)
            self.broken[file.split][first:end] = True

    def _place(self, repeat: Repeat) -> str:
        other = self._file(repeat.other_split, repeat.other_row)
        return f"{other.path}, row {repeat.other_row - other.first}"

    def _file(self, split: str, row: int) -> SourceFile:
        """Return the file of a row of a split."""
        for file in self.files:
            if file.split == split and file.first <= row < file.first + file.rows:
                return file
        raise AssertionError(f"{split} has no row {row}")


class _Ids:
    """The ids of rows, which are read again in their order."""

    def __init__(self) -> None:
        self._path: Path | None = None

    def of(self, path: Path, row: int) -> str | None:
        """Return the id of a row; the rows of a file have to come in their order."""
        if path != self._path:
            self._path = path
            self._batches = file_batches(path, ["id"])
            self._batch = next(self._batches)
        while row >= self._batch.start + self._batch.data.num_rows:
            self._batch = next(self._batches)
        if "id" not in self._batch.data.schema.names:
            return None
        return self._batch.data.column("id")[row - self._batch.start].as_py()


def run(settings: Settings) -> Report:
    """Check rows, and write the report and the copy that are asked for.

    Raises:
        UserError: a mistake in the settings or the model, or an output that cannot be written.
    """
    model = _model_folder(settings.model) if settings.model else None
    files = source_files(settings.splits)
    copies = planned_copies(settings, files)
    listing = settings.report / PROBLEMS if settings.report else None
    rejects = {split: copy.rejects for split, copy in copies.items()}
    with findings(listing, rejects) as found:
        check = Check(files, found)
        _check_rows(settings, model, check)
        kept = {split: copy.write(check.broken[split]) for split, copy in copies.items()}
    outputs = [] if listing is None else [listing]
    if settings.report and any(check.lengths.counts.values()):
        outputs.append(settings.report / PICTURE)
        _draw(settings, check)
    for copy in copies.values():
        outputs += [copy.target, copy.rejects]
    return _report(check, kept, outputs)


def _check_rows(settings: Settings, model: Path | None, check: Check) -> None:
    inspect = partial(RowInspector, settings, model)
    results = map_batches(inspect, read_files(check.files), settings.workers)
    with progress("check", sum(file.rows for file in check.files)) as bar:
        for result in results:
            check.add(result)
            bar.add(result.rows)
    for file in check.files:
        check.add_file(file)
    check.add_repeats()


def _report(check: Check, kept: Mapping[str, int], outputs: list[Path]) -> Report:
    counts = {f"rows in {split}": len(broken) for split, broken in check.broken.items()}
    counts["rows with problems"] = sum(int(broken.sum()) for broken in check.broken.values())
    counts |= {f"rows kept in {split}": rows for split, rows in kept.items()}
    return Report(
        counts=counts,
        rejects=check.found.rejects if kept else {},
        figures=dict([*check.lengths.summary(), *note_lines(check.found)]),
        outputs=tuple(outputs),
        problems=tuple(problem_lines(check.found)),
    )


def _draw(settings: Settings, check: Check) -> None:
    from verl_prism.prepare.check.picture import draw_lengths  # imports matplotlib

    assert settings.report is not None
    draw_lengths(settings.report / PICTURE, check.lengths, settings.token_limits())


def _model_folder(model: Path) -> Path:
    from verl_prism.hub import local_model  # slow to import

    folder = local_model("model", model, False, False, lambda line: None)
    if not folder.is_dir():
        raise UserError(f"model={model}: no such folder; name a Hugging Face folder or a Hub id")
    return folder
