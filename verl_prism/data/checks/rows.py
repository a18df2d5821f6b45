"""One pass over the rows of a data file, in memory that does not grow with the file."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from verl_prism.config import Prism
from verl_prism.data.batches import read_batches, to_rows
from verl_prism.data.checks.answers import check_answer
from verl_prism.data.checks.images import check_images
from verl_prism.data.checks.lengths import (
    Conversation,
    TeacherCounter,
    TokenCounter,
    teacher_response,
)
from verl_prism.data.checks.messages import check_messages, check_student_responses
from verl_prism.data.checks.models import model_folders
from verl_prism.data.checks.problem import RowError
from verl_prism.data.images import ImageSettings
from verl_prism.data.schema import grades_answers
from verl_prism.errors import UserError
from verl_prism.response import View, ends_with_answer

EXAMPLES = 3
END_TOKENS = 2  # that the chat template adds after a response
TEXT, IMAGES = "text", "images"

Row = dict[str, Any]
Progress = Callable[[int], None]  # is given the number of rows since the last call


@dataclass(frozen=True)
class Overlong:
    """A row that is too long: its number in its batch, and what is too long."""

    row: int
    text: str


class Checked(NamedTuple):
    """What a batch of rows has.

    Attributes:
        longest: tokens of the longest prompt or demonstration that is not too long.
        overlong: what is too long.
        tokens, unfinished: see `FileReport`.
    """

    longest: int
    overlong: list[Overlong]
    tokens: dict[str, int]
    unfinished: int


@dataclass
class FileReport:
    """What a pass over a file found.

    Attributes:
        rows: number of rows.
        longest: tokens of the longest prompt or demonstration that is not too long.
        overlong: numbers of the rows that are too long.
        examples: the first few of them, in words.
        tokens: sums over the rows that are not too long, by what has them: `TEXT`, which is a
            prompt or a demonstration with its images, `IMAGES`, and each view of the teacher.
        unfinished: number of the policy's responses in pairs of stage dpo that do not end with an
            answer block, in the rows that are not too long.
    """

    rows: int = 0
    longest: int = 0
    overlong: list[int] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    unfinished: int = 0

    def add(self, rows: int, checked: Checked) -> None:
        """Add what a batch of `rows` rows has; the numbers of its rows count from its start."""
        for found in sorted(checked.overlong, key=lambda item: item.row):
            number = self.rows + found.row
            if number not in self.overlong[-1:]:
                self.overlong.append(number)
            if len(self.examples) < EXAMPLES:
                self.examples.append(f"row {number}: {found.text}")
        self.longest = max(self.longest, checked.longest)
        add_tokens(self.tokens, checked.tokens)
        self.unfinished += checked.unfinished
        self.rows += rows


def add_tokens(sums: dict[str, int], more: Mapping[str, int]) -> None:
    """Add numbers of tokens to sums of the same names."""
    for name, count in more.items():
        sums[name] = sums.get(name, 0) + count


class RowChecker:
    """Checks batches of rows of one split, for the stage of `prism`.

    settings: what the result depends on, besides the rows and the model.
    """

    def __init__(self, prism: Prism, columns: Sequence[str]) -> None:
        key, model = next(iter(model_folders(prism).items()))
        self.columns = tuple(columns)
        self.text_column = "messages" if "messages" in columns else "prompt"
        self._graded = "reward_model" in columns
        self._needs_gold = grades_answers(prism) and prism.reward.function is None
        self._images = ImageSettings.of(prism.image, model)
        self._counter = TokenCounter(key, model)
        self._teacher = TeacherCounter(key, model) if "teacher_response" in columns else None
        self._pairs = prism.dpo.responses_per_prompt if prism.stage == "dpo" else 0
        self._pass_limit = prism.hardware.max_tokens_per_device
        if self.text_column == "messages":
            self._limit_key = "prism.hardware.max_tokens_per_device"
            self._limit = prism.hardware.max_tokens_per_device
        else:
            self._limit_key = "prism.data.max_prompt_tokens"
            self._limit = prism.data.max_prompt_tokens
        limits = prism.discriminator
        self._view_limits = {
            View.PERCEPTION: ("max_perception_tokens", limits.max_perception_tokens),
            View.REASONING: ("max_reasoning_tokens", limits.max_reasoning_tokens),
        }
        self.settings = {
            "columns": list(columns),
            "needs_gold": self._needs_gold,
            "limit": self._limit,
            "views": list(self._view_limits.values()) if self._teacher else [],
            "image": prism.image.model_dump(),
            "pairs": (self._pairs, self._pass_limit) if self._pairs else None,
        }

    def check(self, rows: Sequence[Row]) -> Checked:
        """Check a batch.

        Raises:
            RowErrorAt: the first mistake.
        """
        conversations = [_at(number, self._check_row, row) for number, row in enumerate(rows)]
        overlong = []
        longest = 0
        lengths = []
        for number, length in enumerate(self._counter.lengths(conversations)):
            if isinstance(length, RowError):
                raise RowErrorAt(number, str(length))
            lengths.append(length)
            if length > self._limit:
                overlong.append(Overlong(number, self._too_long(length, conversations[number])))
            else:
                longest = max(longest, length)
        images = [sum(conversation.image_tokens) for conversation in conversations]
        tokens = {TEXT: lengths, IMAGES: images}
        if self._teacher is not None:
            views = self._teacher.lengths([row["teacher_response"] for row in rows])
            overlong += self._overlong_views(views)
            for view in View:
                tokens[view.value] = [each[view] for each in views]
        if self._pairs:
            overlong += self._overlong_pairs(rows, lengths)
        unfinished = [self._unfinished(row) for row in rows]
        left_out = {found.row for found in overlong}
        sums = {name: _sum_without(left_out, counts) for name, counts in tokens.items()}
        return Checked(longest, overlong, sums, _sum_without(left_out, unfinished))

    def _check_row(self, row: Row) -> Conversation:
        messages = check_messages(row, self.text_column)
        image_tokens = check_images(row, self._images)
        if self._graded:
            check_answer(row, needs_gold=self._needs_gold)
        if self._teacher is not None:
            teacher_response(row)
        if "student_responses" in self.columns:
            check_student_responses(row, at_least=max(self._pairs, 1))
        return self._counter.conversation(
            messages, image_tokens, add_generation_prompt=self.text_column == "prompt"
        )

    def _too_long(self, length: int, conversation: Conversation) -> str:
        images = sum(conversation.image_tokens)
        share = f", {images:,} of them for images" if images else ""
        return (
            f"{self.text_column} has {length:,} tokens{share}, over {self._limit_key}={self._limit}"
        )

    def _overlong_views(self, lengths: Sequence[Mapping[View, int]]) -> Iterator[Overlong]:
        for number, views in enumerate(lengths):
            for view, (key, limit) in self._view_limits.items():
                if views[view] > limit:
                    yield Overlong(
                        number,
                        f"teacher_response: its {view} is {views[view]} tokens long, over "
                        f"prism.discriminator.{key}={limit}",
                    )

    def _overlong_pairs(self, rows: Sequence[Row], prompts: Sequence[int]) -> Iterator[Overlong]:
        """Find rows with a pair that does not fit into a pass: verl does not split a pair."""
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            responses = [row["teacher_response"], *self._paired(row)]
            teacher, *students = self._counter.text_lengths(responses)
            student = max(students)
            length = 2 * (prompt + END_TOKENS) + teacher + student
            if length > self._pass_limit:
                yield Overlong(
                    number,
                    f"a pair has {length:,} tokens, because both of its texts count: the prompt "
                    f"({prompt:,}) twice, the teacher's response ({teacher:,}) and the policy's "
                    f"longest ({student:,}), over "
                    f"prism.hardware.max_tokens_per_device={self._pass_limit}",
                )

    def _unfinished(self, row: Row) -> int:
        return sum(not ends_with_answer(text) for text in self._paired(row))

    def _paired(self, row: Row) -> list[str]:
        """Return the policy's responses that make a pair with the teacher's."""
        return row["student_responses"][: self._pairs] if self._pairs else []


def _sum_without(left_out: Collection[int], counts: Sequence[int]) -> int:
    return sum(count for row, count in enumerate(counts) if row not in left_out)


class RowErrorAt(Exception):
    """A mistake in the row with this number in a batch."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


def _at(number: int, check: Callable[[Row], Conversation], row: Row) -> Conversation:
    try:
        return check(row)
    except RowError as error:
        raise RowErrorAt(number, str(error)) from None


def check_rows(file: Path, checker: RowChecker, on_progress: Progress) -> FileReport:
    """Check all rows of a file.

    Raises:
        UserError: names the file, the first wrong row and the fix.
    """
    report = FileReport()
    columns = columns_to_read(file, checker.columns)
    for batch in read_batches(file, columns):
        rows = to_rows(file, report.rows, batch)
        try:
            checked = checker.check(rows)
        except RowErrorAt as error:
            raise UserError(f"{file}, row {report.rows + error.number}: {error}") from None
        report.add(len(rows), checked)
        on_progress(len(rows))
    return report


def columns_to_read(file: Path, columns: Sequence[str]) -> list[str]:
    """Add `extra_info` if it holds equivalent answers; other facts of a task are not checked."""
    schema = pq.read_schema(file)
    present = [column for column in columns if column in schema.names]
    if "reward_model" in columns and "extra_info" in schema.names:
        kind = schema.field("extra_info").type
        if pa.types.is_struct(kind) and kind.get_field_index("equivalent_answers") >= 0:
            present.append("extra_info")
    return present
