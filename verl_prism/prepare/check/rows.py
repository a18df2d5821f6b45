"""The check of a batch of rows, in a worker process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from verl_prism.data.checks.answers import check_data_source, check_reward_model
from verl_prism.data.checks.images import checked_tokens
from verl_prism.data.checks.lengths import (
    Conversation,
    TeacherCounter,
    TokenCounter,
    teacher_response,
)
from verl_prism.data.checks.messages import GARBLED, check_messages
from verl_prism.data.checks.problem import Reason, RowError
from verl_prism.data.images import ImageSettings
from verl_prism.errors import UserError
from verl_prism.prepare.check.findings import STUDENT_NOTE, Fault, Finding, RowReason
from verl_prism.prepare.check.repeats import RowKeys
from verl_prism.prepare.check.settings import Settings
from verl_prism.prepare.identity import row_digest, shared_digests, text_digest
from verl_prism.prepare.parallel import Batch
from verl_prism.prepare.pixels import PictureReader
from verl_prism.response import View, parse_response

SHOWN = 20  # characters around what is wrong in a text
VIEW_LIMITS = {
    View.PERCEPTION: "max_perception_tokens",
    View.REASONING: "max_reasoning_tokens",
}

Row = Mapping[str, Any]
Result = TypeVar("Result")
Given = ParamSpec("Given")


@dataclass
class CheckedRow:
    """A row and what its check found so far."""

    number: int
    row: Row
    problems: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)  # of the images
    image_tokens: list[int] = field(default_factory=list)
    prompt: Conversation | None = None
    demonstration: Conversation | None = None
    response: str | None = None

    def attempt(
        self, check: Callable[Given, Result], *args: Given.args, **options: Given.kwargs
    ) -> Result | None:
        """Return what a check returns, None if it finds a mistake, which is kept."""
        try:
            return check(*args, **options)
        except RowError as error:
            self.problems.append((error.reason, str(error)))
            return None


@dataclass(frozen=True)
class BatchResult:
    """What was found in a batch.

    Attributes:
        source: number of the file.
        rows: number of rows.
        findings: the rows with problems or notes.
        keys: of the rows without problems, to find duplicates and leaks.
        lengths: tokens of prompts, images and responses, by kind.
    """

    source: int
    rows: int
    findings: list[Finding]
    keys: RowKeys
    lengths: dict[str, list[int]]


class RowInspector:
    """Checks batches of rows.

    model: local folder of the model that counts tokens.
    """

    def __init__(self, settings: Settings, model: Path | None) -> None:
        self._optional = settings.optional
        self._limits = settings.token_limits()
        self._pictures = PictureReader(settings.decode_images)
        self._sizes = ImageSettings.of(settings.image, model) if model else None
        self._counter = TokenCounter("model", model) if model else None
        views = model is not None and set(VIEW_LIMITS.values()) & set(self._limits)
        self._views = TeacherCounter("model", model) if model and views else None

    def __call__(self, batch: Batch) -> BatchResult:
        """Check a batch."""
        rows, findings = _readable_rows(batch)
        checked = []
        for number, row in rows:
            each = CheckedRow(number, row)
            self._check_row(each)
            checked.append(each)
        lengths = self._check_lengths(checked)
        keys = RowKeys()
        for each in checked:
            if each.problems or each.notes:
                row_id = _text(each.row.get("id"))
                findings.append(Finding(each.number, row_id, each.problems, each.notes))
            if not each.problems:
                _add_keys(keys, each)
        findings.sort(key=lambda finding: finding.row)
        return BatchResult(batch.source, batch.data.num_rows, findings, keys, lengths)

    def _check_row(self, checked: CheckedRow) -> None:
        row = checked.row
        self._check_images(checked)
        given = [name for name in ("prompt", "messages") if self._given(row, name)]
        for column in given:
            messages = checked.attempt(check_messages, row, column)
            if messages is not None:
                self._check_texts(checked, column, messages)
        if self._given(row, "data_source"):
            checked.attempt(check_data_source, row)
        if self._given(row, "reward_model"):
            checked.attempt(_check_gold, row, "reward_model" in self._optional)
        self._check_responses(checked)
        checked.problems.extend(_garbled(row))

    def _given(self, row: Row, column: str) -> bool:
        """Return whether a row has to have a value in a column, or has one."""
        return column in row and not (column in self._optional and row[column] is None)

    def _check_images(self, checked: CheckedRow) -> None:
        for number, image in enumerate(checked.row.get("images") or []):
            place = f"images[{number}]"
            picture = checked.attempt(self._pictures.picture, place, image)
            if picture is None:
                continue
            checked.digests.append(picture.digest)
            checked.notes += [(note, f"{place}{text}") for note, text in picture.notes]
            if self._sizes is not None:
                size = (picture.width, picture.height, self._sizes)
                tokens = checked.attempt(checked_tokens, place, *size)
                checked.image_tokens.append(tokens or 0)

    def _check_texts(self, checked: CheckedRow, column: str, messages: Any) -> None:
        """Check a row's correct messages, and render them if their images are correct too."""
        question = messages if column == "prompt" else messages[:-1]
        texts = [message["content"] for message in question if message["role"] == "user"]
        if not any(text.strip() for text in texts):
            checked.problems.append(
                (RowReason.NO_QUESTION, f"{column}: no user message has a text")
            )
        images = checked.row.get("images") or []
        if self._counter is None or len(checked.image_tokens) != len(images):
            return
        counter, tokens = self._counter, checked.image_tokens
        conversation = checked.attempt(
            counter.conversation, messages, tokens, add_generation_prompt=column == "prompt"
        )
        if column == "prompt":
            checked.prompt = conversation
        else:
            checked.demonstration = conversation

    def _check_responses(self, checked: CheckedRow) -> None:
        row = checked.row
        if self._given(row, "messages") and row["messages"]:
            last = row["messages"][-1]
            if last and last["role"] == "assistant" and isinstance(last["content"], str):
                checked.response = last["content"]
                checked.attempt(_check_format, "messages[-1]", last["content"])
        if self._given(row, "teacher_response"):
            checked.response = checked.attempt(teacher_response, row)
        students = row.get("student_responses") or []
        if None in students:
            text = f"student_responses[{students.index(None)}] is null; leave it out of the list"
            checked.problems.append((RowReason.NULL_STUDENT, text))
        faults = [parse_response(text).fault for text in students if text is not None]
        wrong = [fault for fault in faults if fault is not None]
        if wrong:
            text = f"{len(wrong)} of {len(students)} student_responses; the first: {wrong[0]}"
            checked.notes.append((STUDENT_NOTE, text))

    def _check_lengths(self, rows: Sequence[CheckedRow]) -> dict[str, list[int]]:
        """Count tokens, compare them with the limits, and return them by kind."""
        if self._counter is None:
            return {}
        prompts = self._conversations(rows, "prompt", "max_prompt_tokens")
        limited = "max_demonstration_tokens" in self._limits
        demonstrated = [row for row in rows if limited or "prompt" not in row.row]
        demonstrations = self._conversations(
            demonstrated, "demonstration", "max_demonstration_tokens"
        )
        with_response = [row for row in rows if row.response is not None]
        responses = self._counter.text_lengths([row.response or "" for row in with_response])
        for row, length in zip(with_response, responses, strict=True):
            self._limit(row, "response", length, "max_response_tokens")
        if self._views is not None:
            self._check_views(self._views, rows)
        images = [sum(row.image_tokens) for row in rows if row.image_tokens]
        lengths = {
            "prompt": prompts,
            "images": images,
            "response": responses,
            "demonstration": demonstrations,
        }
        return {kind: counts for kind, counts in lengths.items() if counts}

    def _conversations(self, rows: Sequence[CheckedRow], name: str, key: str) -> list[int]:
        assert self._counter is not None
        given = [row for row in rows if getattr(row, name) is not None]
        counts = []
        found = self._counter.lengths([getattr(row, name) for row in given])
        for row, length in zip(given, found, strict=True):
            if isinstance(length, RowError):
                row.problems.append((length.reason, str(length)))
            else:
                counts.append(length)
                self._limit(row, name, length, key, sum(row.image_tokens))
        return counts

    def _check_views(self, counter: TeacherCounter, rows: Sequence[CheckedRow]) -> None:
        given = [row for row in rows if row.response is not None and not row.problems]
        given = [row for row in given if row.row.get("teacher_response") is not None]
        lengths = counter.lengths([row.response or "" for row in given])
        for row, views in zip(given, lengths, strict=True):
            for view, key in VIEW_LIMITS.items():
                self._limit(row, f"{view} of teacher_response", views[view], key)

    def _limit(self, row: CheckedRow, name: str, length: int, key: str, images: int = 0) -> None:
        limit = self._limits.get(key)
        if limit is not None and length > limit:
            share = f", {images:,} of them for images" if images else ""
            text = f"{name}: {length:,} tokens{share}, over {key}={limit}"
            row.problems.append((f"{RowReason.TOO_LONG}: over {key}", text))


def _readable_rows(batch: Batch) -> tuple[list[tuple[int, Row]], list[Finding]]:
    """Return the rows of a batch with their numbers, and those whose texts are not UTF-8."""
    try:
        return list(enumerate(batch.rows(), start=batch.start)), []
    except UserError:
        pass
    rows: list[tuple[int, Row]] = []
    broken = []
    for index in range(batch.data.num_rows):
        number = batch.start + index
        one = Batch(batch.file, number, batch.data.slice(index, 1))
        try:
            rows.append((number, one.rows()[0]))
        except UserError as error:
            text = str(error).removeprefix(f"{batch.file}, row {number}: ")
            broken.append(Finding(number, _id(one), [(RowReason.NOT_UTF8, text)]))
    return rows, broken


def _id(batch: Batch) -> str | None:
    """Return the id of the only row of a batch whose texts may not be UTF-8."""
    if "id" not in batch.data.schema.names:
        return None
    try:
        return _text(batch.data.column("id")[0].as_py())
    except UnicodeDecodeError:
        return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _check_gold(row: Row, optional: bool) -> None:
    """Check the answer for the grader. optional: the gold answer may be null."""
    gold = (row["reward_model"] or {}).get("ground_truth")
    check_reward_model(row, needs_gold=not (optional and gold is None))
    if isinstance(gold, str) and not gold.strip():
        raise RowError(Reason.GOLD_ANSWER, "reward_model.ground_truth has no text")


def _check_format(place: str, text: str) -> None:
    fault = parse_response(text).fault
    if fault is not None:
        raise RowError(
            f"{Reason.RESPONSE_FORMAT}: {fault}", f"{place} is not in the response format: {fault}"
        )


def _garbled(row: Row) -> Iterator[Fault]:
    """Yield the first text of a row that was decoded wrongly before it was stored.

    A policy may sample parts of a character, so its own responses do not count.
    """
    for place, text in _texts(row):
        found = None if text.isascii() and "\0" not in text else GARBLED.search(text)
        if found:
            start = max(0, found.start() - SHOWN)
            shown = text[start : found.end() + SHOWN]
            yield (
                RowReason.GARBLED,
                f"{place} has the character U+{ord(found[0]):04X}: …{shown!r}…; read the source "
                "with its right encoding",
            )
            return


def _texts(row: Row) -> Iterator[tuple[str, str]]:
    for column in ("prompt", "messages"):
        for number, message in enumerate(row.get(column) or []):
            if message is not None and isinstance(message["content"], str):
                yield f"{column}[{number}]", message["content"]
    for column in ("id", "data_source", "teacher_response"):
        if isinstance(row.get(column), str):
            yield column, row[column]
    gold = (row.get("reward_model") or {}).get("ground_truth")
    if isinstance(gold, str):
        yield "reward_model.ground_truth", gold


def _add_keys(keys: RowKeys, checked: CheckedRow) -> None:
    row_id = checked.row.get("id")
    keys.add(
        checked.number,
        None if row_id is None else text_digest([row_id]),
        row_digest(checked.row, checked.digests),
        shared_digests(checked.row, checked.digests),
    )
