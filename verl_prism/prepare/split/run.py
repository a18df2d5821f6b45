"""The command split: one pass over what rows share, then one that copies them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator

from verl_prism.config import AbsolutePath, Section
from verl_prism.data.checks.messages import check_messages
from verl_prism.data.checks.problem import RowError
from verl_prism.data.outputs import JsonLines, json_lines
from verl_prism.data.row_files import common_schema, count_rows
from verl_prism.data.rows import parquet_files
from verl_prism.errors import UserError
from verl_prism.prepare.batch_writer import BatchWriter, batch_writer
from verl_prism.prepare.check.files import column_problems
from verl_prism.prepare.check.settings import SplitName
from verl_prism.prepare.identity import shared_digests
from verl_prism.prepare.outputs import check_output
from verl_prism.prepare.parallel import Batch, available_cores, file_batches, map_batches
from verl_prism.prepare.pixels import PictureReader
from verl_prism.prepare.progress import progress
from verl_prism.prepare.report import Report
from verl_prism.prepare.settings import ParquetFiles
from verl_prism.prepare.split.groups import Groups, SharedContent, drawn, grouped

COLUMNS = ("prompt", "messages", "images")
REJECTS = "rejects.jsonl"
LEFT_OUT = -1  # the split of rows that are in none
REASON = "image, or question without images, that is in exclude"
ROUNDING = 1e-6  # by which the sum of the shares may differ from 1


class Settings(Section):
    """What to divide, and how."""

    source: ParquetFiles
    splits: Annotated[dict[SplitName, PositiveFloat], Field(min_length=1)] = Field(
        description="share of each split, together 1: {train: 0.9, heldout: 0.1}"
    )
    output: AbsolutePath = Field(description="folder for one <split>.parquet per split")
    exclude: ParquetFiles | None = Field(
        None, description="parquet: rows that share something with these files are left out"
    )
    seed: NonNegativeInt = Field(0, description="another seed divides the rows in another way")
    decode_images: bool = Field(
        True, description="compare images by their pixels; false: by the bytes of their files"
    )
    workers: NonNegativeInt = Field(
        default_factory=available_cores, description="number of processes; 0: only this one"
    )

    @field_validator("splits")
    @classmethod
    def _whole(cls, splits: dict[str, float]) -> dict[str, float]:
        total = sum(splits.values())
        if abs(total - 1) > ROUNDING:
            raise ValueError(f"the shares add up to {total:g}; they have to add up to 1")
        return splits


class ContentReader:
    """Returns what the rows of a batch may share: the number of digests of each, and all digests.

    Raises:
        UserError: a question or an image cannot be read; with its row.
    """

    def __init__(self, decode: bool) -> None:
        self._pictures = PictureReader(decode)

    def __call__(self, batch: Batch) -> tuple[list[int], list[int]]:
        """Read a batch."""
        counts: list[int] = []
        digests: list[int] = []
        for number, row in enumerate(batch.rows(), start=batch.start):
            try:
                found = self._digests(row)
            except RowError as error:
                raise UserError(
                    f"{batch.file}, row {number}: {error}; python -m verl_prism.data check "
                    f"source={batch.file} fix=... makes a copy without such rows"
                ) from None
            counts.append(len(found))
            digests += found
        return counts, digests

    def _digests(self, row: Mapping[str, Any]) -> list[int]:
        check_messages(row, "prompt" if row.get("prompt") else "messages")
        images = enumerate(row.get("images") or [])
        pictures = [self._pictures.picture(f"images[{index}]", image) for index, image in images]
        return shared_digests(row, [picture.digest for picture in pictures])


def run(settings: Settings) -> Report:
    """Divide rows.

    Raises:
        UserError: a row cannot be read, a split would have no rows, or an output cannot be written.
    """
    files = parquet_files("source", settings.source)
    targets = {name: settings.output / f"{name}.parquet" for name in settings.splits}
    for target in targets.values():
        check_output("output", target, settings.source, files)
    schema = common_schema(files)
    content = _content(files, settings)
    groups = grouped(content)
    splits = drawn(groups.names, list(settings.splits.values()), settings.seed)[groups.of_rows]
    if settings.exclude is not None:
        excluded = _content(parquet_files("exclude", settings.exclude), settings)
        splits[content.rows_with(np.unique(excluded.digests))] = LEFT_OUT
    _check_rows(settings, splits)
    _copy(files, schema, splits, list(targets.values()), settings)
    return _report(settings, splits, groups, list(targets.values()))


def _content(files: Sequence[Path], settings: Settings) -> SharedContent:
    for file in files:
        _check_columns(file)
    content = SharedContent()
    make = partial(ContentReader, settings.decode_images)
    with progress("split", count_rows(files)) as bar:
        for counts, digests in map_batches(make, _batches(files), settings.workers):
            content.add(counts, digests)
            bar.add(len(counts))
    return content


def _batches(files: Sequence[Path]) -> Iterator[Batch]:
    for file in files:
        yield from file_batches(file, COLUMNS)


def _check_columns(file: Path) -> None:
    for problem in column_problems(file, common_schema([file]), COLUMNS):
        raise UserError(f"{file}: {problem}")


def _check_rows(settings: Settings, splits: np.ndarray) -> None:
    for number, name in enumerate(settings.splits):
        if not np.any(splits == number):
            raise UserError(
                f"splits.{name}={settings.splits[name]:g}: no group of rows was drawn for it, of "
                f"{len(splits):,} rows; raise its share, add rows, or try another seed"
            )


def _copy(
    files: Sequence[Path],
    schema: pa.Schema,
    splits: np.ndarray,
    targets: Sequence[Path],
    settings: Settings,
) -> None:
    """Copy each row to the file of its split. splits[N]: number of the row's target."""
    with ExitStack() as stack:
        writers = [stack.enter_context(batch_writer(target, schema)) for target in targets]
        rejects = None
        if settings.exclude is not None:
            rejects = stack.enter_context(json_lines(settings.output / REJECTS))
        first = 0
        for file in files:
            for batch in file_batches(file):
                chosen = splits[first : first + batch.data.num_rows]
                _copy_batch(batch, chosen, writers)
                if rejects is not None:
                    _list(batch, chosen, rejects)
                first += batch.data.num_rows


def _copy_batch(batch: Batch, chosen: np.ndarray, writers: Sequence[BatchWriter]) -> None:
    for number, writer in enumerate(writers):
        writer.write(batch.data.filter(pa.array(chosen == number)))


def _list(batch: Batch, chosen: np.ndarray, rejects: JsonLines) -> None:
    for index in np.flatnonzero(chosen == LEFT_OUT).tolist():
        row_id = batch.data.column("id")[index].as_py() if "id" in batch.data.schema.names else None
        line = {"id": row_id, "file": str(batch.file), "row": batch.start + index}
        rejects.add(line | {"reason": REASON})


def _report(settings: Settings, splits: np.ndarray, groups: Groups, outputs: list[Path]) -> Report:
    counts = {"rows read": len(splits)}
    figures: dict[str, float | str] = {}
    kept = int(np.sum(splits != LEFT_OUT))
    for number, (name, share) in enumerate(settings.splits.items()):
        rows = int(np.sum(splits == number))
        counts[f"rows in {name}"] = rows
        percent = 100 * rows / kept
        figures[name] = f"{percent:.2f} % of the rows, {percent - 100 * share:+.2f} from its share"
    sizes = np.bincount(groups.of_rows)
    figures["groups"] = f"{len(sizes):,}, the largest of {sizes.max():,} rows"
    left_out = len(splits) - kept
    if settings.exclude is not None:
        outputs = [*outputs, settings.output / REJECTS]
    return Report(counts, {REASON: left_out} if left_out else {}, figures, tuple(outputs))
