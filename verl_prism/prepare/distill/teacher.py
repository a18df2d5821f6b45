"""Requests to the teacher, with retries, within the limits."""

import asyncio
import json
import os
import random
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx
import openai
from aiolimiter import AsyncLimiter

from verl_prism.errors import UserError
from verl_prism.prepare.distill.journal import Journal
from verl_prism.prepare.distill.limits import Budget, Meter, Pause, TokenPace
from verl_prism.prepare.distill.questions import Request
from verl_prism.prepare.distill.replies import (
    REFUSED,
    REFUSED_STATUS,
    Answer,
    error_text,
    read_completion,
    refusal,
)
from verl_prism.prepare.distill.settings import Settings
from verl_prism.redaction import Redactor

FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 60.0
MAX_PAUSE_SECONDS = 900.0  # an endpoint that asks for a longer pause ends the run
PASSING_STATUS = (408, 409, 429)  # and 5xx
BURST = 0.02  # requests that may go at once, as a share of those of a minute
QUOTA = "insufficient_quota"  # OpenAI's code for an empty account, sent with status 429


class NoAnswer(Exception):
    """A request got no answer, even after retries; a later run may get one."""


class _PassingError(Exception):
    """A request failed for a reason that may pass.

    retry_after: seconds that the endpoint asks to wait.
    lost: why the request may have been paid for all the same; None: it was not.
    busy: whether the endpoint only asks for fewer requests.
    """

    def __init__(
        self,
        reason: str,
        retry_after: float | None = None,
        lost: str | None = None,
        busy: bool = False,
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.lost = lost
        self.busy = busy


class Teacher:
    """Asks the teacher.

    Make it in the event loop that uses it.

    Attributes:
        refusals: with stop_if_refused, question and try of those refused since the last answer.

    Raises:
        UserError: the environment variable with the key is not set.
    """

    def __init__(self, settings: Settings, journal: Journal, meter: Meter) -> None:
        self._settings = settings
        self._journal = journal
        self._meter = meter
        self._pause = Pause()
        self._tokens = TokenPace(settings.tokens_per_minute)
        self._requests = _limiter(settings.requests_per_minute)
        self._budget = Budget(settings, meter)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._fatal: UserError | None = None  # what every further request would meet
        self.refusals: list[tuple[str, int]] = []
        key = _api_key(settings.teacher.api_key_env)
        self._redact = Redactor([key])
        self._client = openai.AsyncOpenAI(
            base_url=settings.teacher.endpoint,
            api_key=key,
            max_retries=0,
            timeout=settings.teacher.timeout_seconds,
            http_client=httpx.AsyncClient(  # type: ignore[arg-type]  # or httpx2's, in openai 3
                limits=httpx.Limits(
                    max_connections=settings.concurrency,
                    max_keepalive_connections=settings.concurrency,
                ),
                timeout=settings.teacher.timeout_seconds,
                follow_redirects=True,
            ),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, question: str, digest: str, number: int, request: Request) -> Answer:
        """Return the answer to a request, after it is in the journal.

        question, digest: id of the question, and a digest of what the teacher sees of it.
        number: of the try.

        Raises:
            NoAnswer: there is none after all retries.
            BudgetSpent: the answer could pass the budget.
            UserError: every request will fail: wrong key or model, or an empty account.
        """
        failures = 0
        while True:
            before = self._meter.answers
            try:
                return await self._attempt(question, digest, number, request)
            except _PassingError as error:
                # While others get answers, a busy endpoint is no reason to give up.
                if not error.busy or self._meter.answers == before:
                    failures += 1
                if error.retry_after is not None:
                    self._hold(error.retry_after)
                if failures > self._settings.retries:
                    raise NoAnswer(str(error)) from None
                await asyncio.sleep(_delay(failures))  # also if the endpoint asks for no pause

    async def _attempt(self, question: str, digest: str, number: int, request: Request) -> Answer:
        held = await self._budget.reserve(request.units)
        try:
            async with self._slots:
                if self._fatal is not None:
                    raise self._fatal
                expected = await self._turn(request.units)
                most = self._meter.most(request.units)
                await self._journal.sent(question, digest, number, *most)
                began = time.monotonic()
                answer = await self._post_or_note(question, number, request)
            seconds = time.monotonic() - began
            return await self._keep(question, number, answer, request.units, expected, seconds)
        finally:
            await self._budget.release(held)

    async def _post_or_note(self, question: str, number: int, request: Request) -> Answer:
        """Post a request. If it fails, note in the journal that it is no longer on its way."""
        try:
            return await self._post(f"{question}#{number}", request.body)
        except _PassingError as error:
            if error.lost is not None:
                self._meter.lost(request.units)
            await self._journal.unanswered(question, number, error.lost)
            raise
        except UserError as error:
            self._fatal = error
            await self._journal.unanswered(question, number, None)
            raise

    async def _keep(
        self,
        question: str,
        number: int,
        answer: Answer,
        units: float,
        expected: float,
        seconds: float,
    ) -> Answer:
        if answer.finish == REFUSED:
            if self._settings.stop_if_refused:
                self.refusals.append((question, number))  # before it is in the journal
            await self._journal.answered(question, number, answer, True, units, seconds)
            return answer
        self.refusals = []
        counted = answer.input_tokens is not None and answer.output_tokens is not None
        if not counted:
            input_tokens, _ = self._meter.most(units)
            output_tokens = len(answer.text.encode())
            answer = Answer(answer.text, answer.finish, input_tokens, output_tokens)
        self._meter.answered(answer, units, counted)
        self._tokens.correct((answer.input_tokens or 0) + (answer.output_tokens or 0) - expected)
        await self._journal.answered(question, number, answer, counted, units, seconds)
        return answer

    async def _turn(self, units: float) -> float:
        """Wait until a request may be sent; return its expected tokens."""
        expected = sum(self._meter.expected(units))
        await self._tokens.wait(expected)
        while True:
            await self._pause.over()
            if self._requests is not None:
                await self._requests.acquire()
            if not self._pause.active:
                return expected

    def _hold(self, seconds: float) -> None:
        if seconds > MAX_PAUSE_SECONDS:
            raise UserError(
                f"{self._name} asks to wait {seconds:.0f} s; run the command again after that. "
                "The journal keeps what was answered"
            )
        self._pause.extend(seconds)

    async def _post(self, name: str, body: bytes) -> Answer:
        # The header that OpenAI logs, so that a row can be found in the endpoint's log.
        headers = {"X-Client-Request-Id": quote(name)[:512], "Content-Type": "application/json"}
        try:
            async with asyncio.timeout(self._settings.teacher.timeout_seconds):
                response = await self._client.post(
                    "/chat/completions",
                    content=body,
                    cast_to=httpx.Response,
                    options={"headers": headers},
                )
        except openai.APIStatusError as error:
            return self._refused(error)
        except (TimeoutError, openai.APITimeoutError):
            raise _PassingError("no answer in teacher.timeout_seconds", lost="timeout") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            lost = None if isinstance(cause, httpx.ConnectError) else "connection lost"
            reason = self._redact(f"{type(cause).__name__}: {cause}")
            raise _PassingError(f"no connection, or a broken one ({reason})", lost=lost) from None
        return self._read(response.content)

    def _read(self, content: bytes) -> Answer:
        try:
            body = json.loads(content)
        except ValueError:
            raise _PassingError("the reply is not JSON", lost="unreadable reply") from None
        answer = read_completion(body)
        if answer is None:
            reason = self._redact(error_text(body))
            raise _PassingError(f"the reply is no completion: {reason}", lost="unreadable reply")
        return answer

    def _refused(self, error: openai.APIStatusError) -> Answer:
        """Return the refusal of one request; raise what concerns others too."""
        status = error.status_code
        reason = self._redact(f"status {status}: {error_text(_json(error.response.text))}")
        if status in REFUSED_STATUS:
            return refusal(reason)
        if (status not in PASSING_STATUS and status < 500) or error.code == QUOTA:
            raise UserError(f"{self._name} refuses every request: {reason}. {_fix(status)}")
        raise _PassingError(
            reason, retry_after=retry_after(error.response.headers), busy=status in (429, 503)
        )

    @property
    def _name(self) -> str:
        teacher = self._settings.teacher
        return f"the teacher {teacher.model} at teacher.endpoint={teacher.endpoint}"


def retry_after(headers: Any) -> float | None:
    """Return the seconds of a Retry-After header, None if there is none that can be read.

    It may give seconds or a date; `retry-after-ms` gives milliseconds.
    """
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        return seconds if seconds >= 0 else None
    try:
        seconds = parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
    return max(0.0, seconds)


def _limiter(per_minute: float | None) -> AsyncLimiter | None:
    """Return a limiter that spaces requests evenly, with small bursts.

    With a bucket for a whole minute, the first minute would have twice the requests.
    """
    if per_minute is None:
        return None
    burst = max(1.0, BURST * per_minute)
    return AsyncLimiter(burst, 60 * burst / per_minute)


def _delay(failures: int) -> float:
    longest = min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** max(0, failures - 1))
    return longest * random.uniform(0.5, 1.0)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _fix(status: int) -> str:
    match status:
        case 401 | 403:
            return "Check the key in the variable that teacher.api_key_env names"
        case 404:
            return "Check teacher.endpoint and teacher.model"
    return "Check the account and the settings teacher.*"


def _api_key(variable: str | None) -> str:
    if variable is None:
        return "none"  # the client library requires a key even if the server does not
    if not os.environ.get(variable):
        raise UserError(
            f"teacher.api_key_env={variable}: no such environment variable, or it is empty; "
            "set it, or use api_key_env=null for a server without keys"
        )
    return os.environ[variable].strip()
