"""How each of verl's loggers shows samples: as a table if it has tables, with their images."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

NAME = "samples"

Line = dict[str, Any]  # of a table: images, question, teacher, response, and marks
Writer = Callable[[Sequence[Line], int], None]


def write_wandb(lines: Sequence[Line], step: int) -> None:
    """Log a table, with a column for each image of a sample."""
    import wandb

    columns, cells = table(lines, wandb.Image)
    wandb.log({NAME: wandb.Table(columns=columns, data=cells)}, step=step)


def write_tensorboard(lines: Sequence[Line], step: int) -> None:
    """Log each sample as a text of Markdown, and its images.

    They are in a folder of their own: TensorBoard may follow only the last file of a folder, and
    verl's file gets the metrics of later steps.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(os.path.join(os.environ["TENSORBOARD_DIR"], NAME)) as writer:
        for number, line in enumerate(lines):
            writer.add_text(f"{NAME}/{number}", markdown(line), step)
            for place, image in enumerate(line["images"]):
                tag = f"{NAME}/{number}/image{place}"
                writer.add_image(tag, np.asarray(image), step, dataformats="HWC")


def write_swanlab(lines: Sequence[Line], step: int) -> None:
    """Log each sample as a text, and its images."""
    import swanlab

    logged: dict[str, Any] = {}
    for number, line in enumerate(lines):
        logged[f"{NAME}/{number}"] = swanlab.Text(markdown(line))
        for place, image in enumerate(line["images"]):
            logged[f"{NAME}/{number}/image{place}"] = swanlab.Image(image)
    swanlab.log(logged, step=step)


def write_mlflow(lines: Sequence[Line], step: int) -> None:
    """Log a table as an artifact of the run, with a column for each image of a sample."""
    import mlflow
    import pandas as pd

    columns, cells = table(lines, mlflow.Image)
    mlflow.log_table(pd.DataFrame(cells, columns=columns), f"{NAME}/step_{step}.json")


def write_trackio(lines: Sequence[Line], step: int) -> None:
    """Log a table, with a column for each image of a sample."""
    import trackio

    columns, cells = table(lines, trackio.Image)
    trackio.log({NAME: trackio.Table(columns=columns, data=cells)}, step=step)


def table(
    lines: Sequence[Line], image_type: Callable[[Any], Any]
) -> tuple[list[Any], list[list[Any]]]:
    """Return columns and cells, with images as a logger's `image_type`; None if a sample lacks one.

    The images of a sample are its first columns, `image0` and so on.
    """
    rows = []
    for line in lines:
        row = {f"image{place}": image_type(image) for place, image in enumerate(line["images"])}
        row |= {name: value for name, value in line.items() if name != "images"}
        rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[row.get(name) for name in columns] for row in rows]


def markdown(line: Line) -> str:
    """Return what a sample has besides its images, one paragraph each."""
    parts = [f"**{name}**: {value}" for name, value in line.items() if name != "images"]
    return "\n\n".join(parts)


WRITERS: dict[str, Writer] = {
    "wandb": write_wandb,
    "tensorboard": write_tensorboard,
    "swanlab": write_swanlab,
    "mlflow": write_mlflow,
    "trackio": write_trackio,
}
"""By name in `prism.loggers`. The other loggers get metrics only."""
