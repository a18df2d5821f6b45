"""Choose responses of the policy that pair fairly with the teacher's, for the warm-up.

python -m verl_prism.data pairs source=sampled.parquet output=pairs.parquet
python -m verl_prism.data pairs source=sampled.parquet output=pairs.parquet match_length=false

The source has teacher_response and student_responses. The discriminator compares both, once for the
caption (perception) and once for think and answer (reasoning). If the teacher writes longer texts
than the policy, then length alone tells them apart, and the discriminator learns nothing else.

With match_length a pair is kept with such a probability that its mirror image, in which teacher and
policy swap their lengths, is as frequent, in both views at the same time. Length then says nothing
about the side. The report has the accuracy of a guess by length alone, before and after: 0.5 is
chance. Lengths are in characters. Only responses in the response format form pairs, so a truncated
response does not; a response that equals the teacher's forms no pair either.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt

from verl_prism.config import Section
from verl_prism.data.checks.columns import check_columns
from verl_prism.data.checks.messages import check_no_null_response
from verl_prism.data.checks.problem import RowError
from verl_prism.data.row_files import (
    Row,
    common_schema,
    count_rows,
    read_rows,
    row_id,
    row_writer,
)
from verl_prism.data.rows import parquet_files
from verl_prism.errors import UserError
from verl_prism.prepare.outputs import check_output
from verl_prism.prepare.progress import progress
from verl_prism.prepare.rejects import open_rejects
from verl_prism.prepare.report import Report
from verl_prism.prepare.settings import Output, ParquetFiles
from verl_prism.response import Response, View, parse_response

Cell = tuple[int, ...]  # bin of the length ratio in each view
NEEDED = ("teacher_response", "student_responses")


class Settings(Section):
    """Settings of `pairs`."""

    source: ParquetFiles
    output: Output = Field(description="parquet file to write")
    per_question: PositiveInt | None = Field(
        None, description="most responses of a question; null: all"
    )
    match_length: bool = Field(True, description="keep pairs whose lengths say nothing")
    bin_width: PositiveFloat = Field(
        0.1, description="lengths count as alike within this difference of their logarithms"
    )
    seed: int = Field(0, description="seed of the choice")


@dataclass
class LengthCounts:
    """How often the teacher's text is longer, by view, and how often each length ratio occurs."""

    cells: Counter[Cell] = field(default_factory=Counter)
    longer: Counter[View] = field(default_factory=Counter)
    shorter: Counter[View] = field(default_factory=Counter)

    def add(self, ratios: Sequence[float], width: float) -> None:
        """Add a pair. ratios: of each view, log(teacher's length / policy's length)."""
        self.cells[cell(ratios, width)] += 1
        for view, ratio in zip(View, ratios, strict=True):
            if ratio > 0:
                self.longer[view] += 1
            elif ratio < 0:
                self.shorter[view] += 1

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self.cells.total()

    def guess(self, view: View) -> float:
        """Return the accuracy of the guess that the teacher's text is always longer, or shorter."""
        ties = self.pairs - self.longer[view] - self.shorter[view]
        best = max(self.longer[view], self.shorter[view])
        return (best + ties / 2) / max(self.pairs, 1)

    def keep_probability(self, place: Cell) -> float:
        """Return the probability with which a pair is kept, so that its mirror is as frequent."""
        mirror = tuple(-index for index in place)
        return min(1.0, self.cells[mirror] / self.cells[place])


def run(settings: Settings) -> Report:
    """Write the rows that have pairs, with only the chosen responses.

    Raises:
        UserError: a column is missing, a teacher's response is not in the format, or no pair is
            left.
    """
    files = parquet_files("source", settings.source)
    check_output("output", settings.output, settings.source, files)
    for file in files:
        check_columns("source", file, NEEDED)
    schema = common_schema(files)
    before = LengthCounts()
    after = LengthCounts()
    with progress("measuring lengths", count_rows(files)) as bar:
        for row in read_rows(files, ("id", "prompt", *NEEDED)):
            for _, ratios in candidates(row):
                before.add(ratios, settings.bin_width)
            bar.add()
    with (
        row_writer(settings.output, schema) as writer,
        open_rejects(settings.output) as rejects,
        progress("choosing pairs", count_rows(files)) as bar,
    ):
        for row in read_rows(files):
            chosen = _choose(row, settings, before)
            if chosen:
                for _, ratios in chosen:
                    after.add(ratios, settings.bin_width)
                texts = [text for text, _ in chosen]
                writer.write(row | {"student_responses": texts})
            else:
                rejects.add(row_id(row), _reason(row))
            bar.add()
        if not writer.rows:
            raise UserError(_nothing_left(before, files))
    return Report(
        counts={
            "pairs in the source": before.pairs,
            "pairs kept": after.pairs,
            "rows kept": writer.rows,
        },
        rejects=rejects.counts,
        figures=_guesses(before, after),
        outputs=(settings.output, rejects.file),
    )


def candidates(row: Row) -> Iterator[tuple[str, list[float]]]:
    """Yield each response that forms a pair, with log(teacher's / its length) of each view.

    Raises:
        UserError: the teacher's response is not in the format, or a response is null.
    """
    try:
        check_no_null_response(row)
    except RowError as error:
        raise UserError(f"row {row_id(row)}: {error}") from None
    teacher = parse_response(row["teacher_response"] or "")
    if not teacher.valid:
        raise UserError(
            f"row {row_id(row)}: teacher_response is not in the format: {teacher.fault}; "
            "python -m verl_prism.data check finds such rows"
        )
    for text in row["student_responses"] or []:
        student = parse_response(text)
        if student.valid and _texts(student) != _texts(teacher):
            yield text, [_ratio(teacher, student, view) for view in View]


def cell(ratios: Sequence[float], width: float) -> Cell:
    """Return the bin of each ratio: opposite for opposite ratios, 0 for equal lengths only."""
    return tuple(int(math.copysign(math.ceil(abs(ratio) / width), ratio)) for ratio in ratios)


def _ratio(teacher: Response, student: Response, view: View) -> float:
    return math.log(len(teacher.view_text(view)) / len(student.view_text(view)))


def _texts(response: Response) -> list[str]:
    return [response.view_text(view) for view in View]


def _choose(row: Row, settings: Settings, lengths: LengthCounts) -> list[tuple[str, list[float]]]:
    """Return the pairs of a row that are kept. The choice depends on the seed and the row only."""
    draw = random.Random(f"{settings.seed} {row_id(row)}")
    kept = []
    for text, ratios in candidates(row):
        place = cell(ratios, settings.bin_width)
        if not settings.match_length or draw.random() < lengths.keep_probability(place):
            kept.append((text, ratios))
    if settings.per_question is not None and len(kept) > settings.per_question:
        kept = draw.sample(kept, settings.per_question)
    return kept


def _reason(row: Row) -> str:
    if any(candidates(row)):
        return "no pair of matched length"
    return "no response forms a pair"


def _guesses(before: LengthCounts, after: LengthCounts) -> dict[str, str]:
    guesses = {}
    for view in View:
        guesses[f"{view.value}: guess by length"] = (
            f"{before.guess(view):.3f} before, {after.guess(view):.3f} after (0.5 is chance)"
        )
    return guesses


def _nothing_left(lengths: LengthCounts, files: Sequence[Path]) -> str:
    names = ", ".join(str(file) for file in files)
    if not lengths.pairs:
        return (
            f"{names}: no response is in the format and differs from the teacher's; "
            "fine-tune the policy first"
        )
    return (
        f"{names}: no pairs can be matched by length: one side is always longer; raise bin_width, "
        "or set match_length=false"
    )
