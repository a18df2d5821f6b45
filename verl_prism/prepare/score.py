"""Score the policy's responses with a discriminator: caption and reasoning, each on its own.

python -m verl_prism.data score source=sampled.parquet output=scored.parquet \\
    discriminator=runs/4b/align/discriminator

The columns perception_scores and reasoning_scores have a score for each of student_responses, null
for one that is not in the response format. best_response is the response whose scores have the
highest sum, null if none is valid: the best of n by the discriminator. If the source has
teacher_response, its two scores are written too. Only scores of the same question and view can be
compared. The discriminator sees images at the size that `image` allows, so give the run's
prism.image. The command uses one device.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, PositiveInt

from verl_prism.config import ModelPath, Section
from verl_prism.data.checks.columns import check_columns
from verl_prism.data.checks.images import check_images
from verl_prism.data.checks.messages import check_messages, check_student_responses
from verl_prism.data.checks.models import check_model_folder
from verl_prism.data.checks.problem import RowError
from verl_prism.data.images import ImageSettings
from verl_prism.data.row_files import (
    Row,
    common_schema,
    count_rows,
    read_rows,
    row_id,
    row_writer,
    with_columns,
)
from verl_prism.data.rows import parquet_files
from verl_prism.errors import UserError
from verl_prism.prepare.check.settings import Image
from verl_prism.prepare.outputs import check_output
from verl_prism.prepare.progress import progress
from verl_prism.prepare.report import Report
from verl_prism.prepare.settings import Output, ParquetFiles
from verl_prism.response import View, parse_response

NEEDED = ("prompt", "student_responses")
TEACHER = "teacher_response"
BEST = "best_response"

Scores = tuple[float, ...]  # of each view, in the order of View


class Settings(Section):
    """Settings of `score`."""

    source: ParquetFiles
    output: Output = Field(description="parquet file to write")
    discriminator: ModelPath = Field(description="folder of a discriminator, or its id on the Hub")
    image: Image = Image(min_pixels=None, max_pixels=None)
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is one")
    rows_per_pass: PositiveInt = Field(16, description="rows that are read and scored together")
    micro_batch_tokens: PositiveInt = Field(
        32_768, description="size of one forward pass in tokens; lower it if memory runs out"
    )


@dataclass(frozen=True)
class RowScores:
    """The scores of a row: of its responses, None if invalid, and of its teacher, if valid."""

    students: Sequence[Scores | None]
    teacher: Scores | None


def run(settings: Settings) -> Report:
    """Write all rows of the source with the scores of their responses.

    Raises:
        UserError: a column is missing, a row cannot be used, the discriminator cannot be read, or
            a limit of image is outside those of its image processor.
    """
    files = parquet_files("source", settings.source)
    check_output("output", settings.output, settings.source, files)
    for file in files:
        check_columns("source", file, NEEDED)
    schema = common_schema(files)
    has_teacher = TEACHER in schema.names
    scorer = Scorer(settings)
    counts = {"rows": 0, "responses": 0, "invalid responses, without a score": 0}
    with (
        row_writer(settings.output, with_columns(schema, _columns(has_teacher))) as writer,
        progress("scoring", count_rows(files)) as bar,
    ):
        source = iter(read_rows(files))
        while rows := list(islice(source, settings.rows_per_pass)):
            for row, scores in zip(rows, scorer.score(rows), strict=True):
                writer.write(row | scored_columns(row, scores, has_teacher))
                counts["rows"] += 1
                counts["responses"] += len(scores.students)
                counts["invalid responses, without a score"] += scores.students.count(None)
            bar.add(len(rows))
    return Report(counts=counts, outputs=(settings.output,))


def scored_columns(row: Row, scores: RowScores, has_teacher: bool) -> dict[str, Any]:
    """Return the new columns of a row."""
    columns: dict[str, Any] = {BEST: best_response(row["student_responses"], scores.students)}
    for number, view in enumerate(View):
        columns[f"{view.value}_scores"] = [
            None if given is None else given[number] for given in scores.students
        ]
        if has_teacher:
            teacher = None if scores.teacher is None else scores.teacher[number]
            columns[f"teacher_{view.value}_score"] = teacher
    return columns


def best_response(responses: Sequence[str], scores: Sequence[Scores | None]) -> str | None:
    """Return the response whose scores have the highest sum, the first one of equals."""
    valid = [number for number, given in enumerate(scores) if given is not None]
    if not valid:
        return None
    return responses[max(valid, key=lambda number: sum(scores[number] or ()))]


def _columns(has_teacher: bool) -> dict[str, pa.DataType]:
    columns: dict[str, pa.DataType] = {BEST: pa.string()}
    for view in View:
        columns[f"{view.value}_scores"] = pa.list_(pa.float64())
        if has_teacher:
            columns[f"teacher_{view.value}_score"] = pa.float64()
    return columns


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


class Scorer:
    """A discriminator on one device."""

    def __init__(self, settings: Settings) -> None:
        import torch
        from transformers import AutoProcessor
        from transformers.utils.logging import disable_progress_bar

        from verl_prism.discriminator import GroupEncoder, Ranks, load_discriminator
        from verl_prism.hub import local_model

        path = settings.discriminator
        folder = local_model("discriminator", path, offline=False, weights=True, say=_say)
        check_model_folder("discriminator", folder)
        self._image_settings = ImageSettings.of(settings.image, folder)
        disable_progress_bar()  # it would show how the weights are loaded
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._model = load_discriminator(folder, dtype).to(device).eval()
        self._processor = AutoProcessor.from_pretrained(folder)
        self._encoder = GroupEncoder(self._model.config)
        self._ranks = Ranks(device)
        self._image_limits = settings.image
        self._max_tokens = settings.micro_batch_tokens

    def score(self, rows: Sequence[Row]) -> list[RowScores]:
        """Return the scores of each row.

        Raises:
            UserError: a row has no responses, or its prompt or an image cannot be used.
        """
        for row in rows:
            self._check(row)
        spans = [[self._spans(text) for text in _texts(row)] for row in rows]
        valid = self._valid_scores(rows, spans)
        found = []
        for number, given in enumerate(spans):
            scores = iter(valid[number])
            teacher, *students = [None if each is None else next(scores) for each in given]
            found.append(RowScores(students, teacher))
        return found

    def _check(self, row: Row) -> None:
        """Make the checks that the stages make."""
        try:
            check_messages(row, "prompt")
            check_images(row, self._image_settings)
            check_student_responses(row)
        except RowError as error:
            raise UserError(f"row {row_id(row)}: {error}") from None

    def _spans(self, text: str | None) -> Any:
        from verl_prism.discriminator import tokenize_spans

        response = parse_response(text or "")
        return tokenize_spans(response, self._processor.tokenizer) if response.valid else None

    def _valid_scores(
        self, rows: Sequence[Row], spans: Sequence[Sequence[Any]]
    ) -> list[list[Scores]]:
        """Return the scores of the valid texts of each row, in their order.

        A group needs a teacher. It is the first valid text, whose score does not depend on that.
        """
        from verl_prism.discriminator import Group, MiniBatch, score_groups
        from verl_prism.stages.warmup_data import encode_row

        found: list[list[Scores]] = [[] for _ in rows]
        groups = {}
        for number, given in enumerate(spans):
            valid = [each for each in given if each is not None]
            if valid:
                prompt = encode_row(self._processor, rows[number], self._image_limits)
                groups[number] = Group(prompt, valid[0], valid)
        if not groups:
            return found
        batch = MiniBatch(self._encoder, list(groups.values()), self._max_tokens)
        students = score_groups(self._model, batch, self._ranks).student
        for place, (number, group) in enumerate(groups.items()):
            values = students[:, place, : len(group.students)].T.tolist()
            found[number] = [tuple(each) for each in values]
        return found


def _texts(row: Row) -> list[str | None]:
    """Return the teacher's response, None if it is missing, and then the policy's."""
    return [row.get(TEACHER), *row["student_responses"]]
