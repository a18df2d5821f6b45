"""Copies of splits without the broken rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from verl_prism.data.row_files import common_schema
from verl_prism.errors import UserError
from verl_prism.prepare.batch_writer import batch_writer
from verl_prism.prepare.check.files import SourceFile, readable_batches
from verl_prism.prepare.check.settings import Settings
from verl_prism.prepare.outputs import check_output
from verl_prism.prepare.rejects import rejects_file


@dataclass(frozen=True)
class Copy:
    """A copy that is to be written.

    Attributes:
        files: those of the split whose columns are right.
        target: the file to write.
        schema: the columns of all files.
    """

    files: Sequence[SourceFile]
    target: Path
    schema: pa.Schema

    @property
    def rejects(self) -> Path:
        """The file that lists the rows that are left out."""
        return rejects_file(self.target)

    def write(self, broken: np.ndarray) -> int:
        """Write the rows that are not broken, and return their number.

        broken: whether each row of the split is.

        Raises:
            UserError: the copy cannot be written.
        """
        with batch_writer(self.target, self.schema) as writer:
            for file in self.files:
                for batch in readable_batches(file):
                    first = file.first + batch.start
                    keep = ~broken[first : first + batch.data.num_rows]
                    writer.write(batch.data.filter(pa.array(keep)))
        return writer.rows


def planned_copies(settings: Settings, files: Sequence[SourceFile]) -> dict[str, Copy]:
    """Return the copies that are asked for, by split.

    Raises:
        UserError: a copy would replace a source, no file has usable columns, or the columns of two
            files do not fit together.
    """
    if settings.fix is None:
        return {}
    copies = {}
    for split in settings.splits:
        usable = [file for file in files if file.split == split and file.readable]
        if not usable:
            raise UserError(
                f"source.{split}: no file has usable columns, so fix has nothing to keep; run the "
                "check without fix to see what is wrong"
            )
        target = settings.fixed_file(split)
        paths = [file.path for file in files]
        for source in settings.splits.values():
            check_output("fix", target, source, paths)
        copies[split] = Copy(usable, target, common_schema([file.path for file in usable]))
    return copies
