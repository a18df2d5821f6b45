"""Files of the OpenAI Batch API: requests out, results in. `vllm run-batch` uses them too."""

import glob
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from verl_prism.errors import UserError
from verl_prism.prepare.distill.asking import undecided
from verl_prism.prepare.distill.journal import Journal, answer_statement, question_statement
from verl_prism.prepare.distill.questions import Question, RequestMaker
from verl_prism.prepare.distill.replies import (
    REFUSED,
    REFUSED_STATUS,
    Answer,
    error_text,
    read_completion,
    refusal,
)
from verl_prism.prepare.distill.settings import Settings
from verl_prism.prepare.distill.verdicts import Grader
from verl_prism.prepare.progress import progress
from verl_prism.prepare.report import Report

URL = "/v1/chat/completions"
COMMIT_ROWS = 500
DIGITS = 8  # of a question's digest, in the name of its requests


def write_requests(
    settings: Settings,
    maker: RequestMaker,
    journal: Journal,
    grader: Grader,
    questions: Iterable[Question],
) -> Report:
    """Write a request for the next try of each question that is not decided.

    Request files of an earlier round are deleted.
    """
    old = request_files(settings)
    for file in old:
        file.unlink()
    writer = _RequestWriter(settings)
    known = []
    with progress("batch files", None) as bar:
        for question, digest, tries in undecided(questions, maker, journal, grader, bar):
            number = _next_try(settings, tries)
            if number is not None:
                request = maker.request(question.row)
                writer.write(f"{question.id}#{number}#{digest[:DIGITS]}", request.body)
                known.append(question_statement(question.id, digest))
            if len(known) >= COMMIT_ROWS:
                journal.add(known)
                known = []
            bar.add()
    journal.add(known)
    writer.close()
    counts = {"requests written": writer.requests}
    if old:
        counts["request files of an earlier round deleted"] = len(old)
    return Report(counts=counts, outputs=(*writer.files, settings.journal))


def request_files(settings: Settings) -> list[Path]:
    """Return the request files beside the output."""
    name = glob.escape(settings.output.name)
    return sorted(settings.output.parent.glob(f"{name}.batch-*.jsonl"))


def read_results(settings: Settings, journal: Journal) -> dict[str, float | str]:
    """Put the results of a batch into the journal, and return how many there were.

    A result whose try is in the journal already is not added again.

    Raises:
        UserError: a line is not a result, or that of another question; with its file and line.
            Or all requests were refused.
    """
    assert settings.batch_results is not None
    if settings.stop_if_refused:
        _check_refusals(settings.batch_results)
    answers = 0
    errors = 0
    statements = []
    for file in _result_files(settings.batch_results):
        for place, result in _lines(file):
            question, number, digits = _key(place, result)
            _check_question(place, journal, question, digits)
            answer = _answer(result)
            if answer is None:
                errors += 1
                continue
            answers += 1
            counted = answer.input_tokens is not None and answer.output_tokens is not None
            if not counted:
                tokens = len(answer.text.encode())
                answer = Answer(answer.text, answer.finish, answer.input_tokens, tokens)
            statements.append(answer_statement(question, number, answer, counted, 0.0, None))
            if len(statements) >= COMMIT_ROWS:
                journal.add(statements)
                statements = []
    journal.add(statements)
    return {"batch results read": answers, "batch results with an error": errors}


class _RequestWriter:
    """Writes requests to as many files as the limits ask for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stream: IO[bytes] | None = None
        self._left = 0
        self._bytes = 0
        self.files: list[Path] = []
        self.requests = 0

    def write(self, name: str, body: bytes) -> None:
        head = {"custom_id": name, "method": "POST", "url": URL}
        line = json.dumps(head).encode()[:-1] + b', "body": ' + body + b"}\n"
        if len(line) > self._settings.batch_max_bytes:
            raise UserError(
                f"the request {name} has {len(line):,} bytes, over batch_max_bytes="
                f"{self._settings.batch_max_bytes}; lower max_image_pixels"
            )
        if self._left == 0 or self._bytes < len(line):
            self._next_file()
        assert self._stream is not None
        self._stream.write(line)
        self._left -= 1
        self._bytes -= len(line)
        self.requests += 1

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _next_file(self) -> None:
        self.close()
        output = self._settings.output
        file = output.with_name(f"{output.name}.batch-{len(self.files):03}.jsonl")
        self._stream = file.open("wb")
        self._left = self._settings.batch_max_requests
        self._bytes = self._settings.batch_max_bytes
        self.files.append(file)


def _next_try(settings: Settings, tries: dict[int, Any]) -> int | None:
    """Return the first try without an answer; None if answers only have to be judged."""
    return next((number for number in range(settings.tries) if number not in tries), None)


def _result_files(source: Path | tuple[Path, ...]) -> Iterator[Path]:
    for path in [source] if isinstance(source, Path) else source:
        pattern = str(path / "*.jsonl") if path.is_dir() else str(path)
        files = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(pattern))]
        if not files:
            raise UserError(f"batch_results={path}: no such file")
        yield from files


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            place = f"{file}, line {number}"
            try:
                yield place, json.loads(line)
            except ValueError as error:
                raise UserError(f"{place}: not JSON ({error}); download the file again") from None


def _key(place: str, result: Any) -> tuple[str, int, str]:
    """Return question, try and first digits of the question's digest, from the `custom_id`."""
    name = result.get("custom_id") if isinstance(result, dict) else None
    parts = name.rsplit("#", 2) if isinstance(name, str) else []
    if len(parts) != 3 or not parts[1].isdecimal() or "body" in result:
        raise UserError(
            f"{place}: not a result of a request of batch=write; give the batch's result files"
        )
    question, number, digits = parts
    return question, int(number), digits


def _check_question(place: str, journal: Journal, question: str, digits: str) -> None:
    """Check that a result belongs to the question of this id, and not to another data set's."""
    digest = journal.digest(question)
    if digest is None or digest[:DIGITS] != digits:
        found = "no question" if digest is None else "another question"
        raise UserError(
            f"{place}: the result of another batch: the journal of this output has {found} by the "
            f"id {question}; give the results of the requests that batch=write wrote beside it"
        )


def _check_refusals(source: Path | tuple[Path, ...]) -> None:
    """Check that not all requests were refused, as with a wrong setting."""
    count = 0
    for file in _result_files(source):
        for place, result in _lines(file):
            _key(place, result)
            answer = _answer(result)
            if answer is None:
                continue
            if answer.finish != REFUSED:
                return
            count += 1
            reason = answer.text
    if count:
        raise UserError(
            f"batch_results: all {count} requests were refused, and nothing is kept; the last: "
            f"{reason}. Correct the settings and repeat batch=write; give the results of a batch "
            "together; or leave these rows out with stop_if_refused=false"
        )


def _answer(result: dict[str, Any]) -> Answer | None:
    """Return the answer in a result; None if there is none and it should be asked again."""
    response = result.get("response")
    if not isinstance(response, dict):
        return None
    status = response.get("status_code")
    if status in REFUSED_STATUS:
        return refusal(f"status {status}: {error_text(response.get('body'))}")
    return read_completion(response.get("body")) if status == 200 else None
