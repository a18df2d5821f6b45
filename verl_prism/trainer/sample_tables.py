"""Samples of a step with their questions and images, for the report and for verl's loggers."""

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from PIL import Image

from verl_prism.config import Prism
from verl_prism.data.messages import question_text
from verl_prism.data.rows import Row, Rows, heldout_rows, train_rows
from verl_prism.report.step_samples import RESPONSE, ROW, add_samples
from verl_prism.run_folder import RunFolder
from verl_prism.trainer.sample_writers import WRITERS, Line

Samples = Sequence[Mapping[str, Any]]

COLUMNS = ("prompt", "messages", "images", "teacher_response")


class SampleTables:
    """Sends samples of every N-th step to the loggers of a run (`prism.log_samples_every`)."""

    def __init__(self, prism: Prism) -> None:
        self._prism = prism
        self._every = prism.log_samples_every
        self._writers = [WRITERS[name] for name in prism.loggers if name in WRITERS]

    def keep(self, samples: Samples, step: int) -> None:
        """Add the samples of a step to the run's file, and send them if it is an N-th step."""
        if samples:
            add_samples(RunFolder(self._prism.output), samples)
        if self._every is not None and step % self._every == 0:
            self.send(samples, step)

    def send(self, samples: Samples, step: int) -> None:
        """Send samples, whichever step they are of, unless `prism.log_samples_every` is null."""
        if self._every is None or not self._writers or not samples:
            return
        lines = [table_line(sample, self._rows[sample[ROW]]) for sample in samples]
        for writer in self._writers:
            writer(lines, step)

    @cached_property
    def _rows(self) -> Rows:
        """The rows that the stage's samples are numbered by."""
        read = heldout_rows if self._prism.stage == "eval" else train_rows
        return read(self._prism, COLUMNS)


def table_line(sample: Mapping[str, Any], row: Row) -> Line:
    """Return a sample with its question and teacher."""
    images = [
        Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in row["images"] or ()
    ]
    marks = {name: value for name, value in sample.items() if name != RESPONSE}
    return {
        "images": images,
        "question": question_text(row),
        "teacher": row["teacher_response"],
        "response": sample[RESPONSE],
        **marks,
    }
