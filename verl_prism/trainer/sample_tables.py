"""Samples of a step as tables with their images, for the loggers that can show them."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from verl_prism.config import Prism
from verl_prism.data.rows import Row, Rows, train_rows
from verl_prism.report.step_samples import RESPONSE, ROW

NAME = "samples"
COLUMNS = ("prompt", "images", "teacher_response")

Line = dict[str, Any]  # of a table: images, question, teacher, response, and marks
Writer = Callable[[Sequence[Line], int], None]


class SampleTables:
    """Sends the samples of every N-th step to the loggers of a run (`prism.log_samples_every`)."""

    def __init__(self, prism: Prism) -> None:
        self._prism = prism
        self._every = prism.log_samples_every
        self._writers = [WRITERS[name] for name in prism.loggers if name in WRITERS]

    def write(self, samples: Sequence[Mapping[str, Any]], step: int) -> None:
        """Send the samples of a step, if it is one of those that are sent."""
        if self._every is None or step % self._every or not self._writers or not samples:
            return
        lines = [table_line(sample, self._rows[sample[ROW]]) for sample in samples]
        for writer in self._writers:
            writer(lines, step)

    @cached_property
    def _rows(self) -> Rows:
        return train_rows(self._prism, COLUMNS)


def table_line(sample: Mapping[str, Any], row: Row) -> Line:
    """Return a sample with its question and teacher."""
    asked = [message["content"] for message in row["prompt"] if message["role"] == "user"]
    images = [
        Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in row["images"] or ()
    ]
    marks = {name: value for name, value in sample.items() if name != RESPONSE}
    return {
        "images": images,
        "question": "\n".join(asked),
        "teacher": row["teacher_response"],
        "response": sample[RESPONSE],
        **marks,
    }


def write_wandb(lines: Sequence[Line], step: int) -> None:
    """Log a table of wandb, with a column for each image of a sample."""
    import wandb

    table_lines = []
    for line in lines:
        images = {f"image{place}": wandb.Image(image) for place, image in enumerate(line["images"])}
        others = {name: value for name, value in line.items() if name != "images"}
        table_lines.append(images | others)
    columns = list(dict.fromkeys(name for line in table_lines for name in line))
    data = [[line.get(name) for name in columns] for line in table_lines]
    wandb.log({NAME: wandb.Table(columns=columns, data=data)}, step=step)


def write_tensorboard(lines: Sequence[Line], step: int) -> None:
    """Log each sample as a text of Markdown, and its images, into verl's folder."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(os.environ["TENSORBOARD_DIR"]) as writer:
        for number, line in enumerate(lines):
            parts = [f"**{name}**: {value}" for name, value in line.items() if name != "images"]
            writer.add_text(f"{NAME}/{number}", "\n\n".join(parts), step)
            for place, image in enumerate(line["images"]):
                tag = f"{NAME}/{number}/image{place}"
                writer.add_image(tag, np.asarray(image), step, dataformats="HWC")


WRITERS: dict[str, Writer] = {"wandb": write_wandb, "tensorboard": write_tensorboard}
"""By name in `prism.loggers`. The other loggers get metrics only."""
