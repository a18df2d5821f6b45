"""What keeps the requests within their limits: pauses, the rate of tokens, and the budget."""

import asyncio
import time

from verl_prism.prepare.distill.journal import Totals
from verl_prism.prepare.distill.questions import BYTES_PER_TOKEN
from verl_prism.prepare.distill.replies import Answer
from verl_prism.prepare.distill.settings import Settings

SAFETY = 1.25  # on the most input tokens per size seen so far
CATCH_UP_SECONDS = 1.0
POLL_SECONDS = 0.05


class BudgetSpent(Exception):
    """The next request could pass the budget."""


class Pause:
    """Holds back all requests for a while."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def active(self) -> bool:
        """Whether requests are held back now."""
        return time.monotonic() < self._until

    def extend(self, seconds: float) -> None:
        """Hold back requests for this time from now on, or longer if that is known already."""
        self._until = max(self._until, time.monotonic() + seconds)

    async def over(self) -> None:
        """Wait until the pause is over."""
        while self.active:
            await asyncio.sleep(self._until - time.monotonic())


class TokenPace:
    """Spaces requests so that their tokens arrive at an even rate, in the order of the requests.

    The tokens of a request are known when it is answered. Until then it counts with what is
    expected, and `correct` adds the difference. (`aiolimiter` has no way to do that.)

    per_minute: tokens; None: no limit.
    """

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_per_token = 60 / per_minute if per_minute else 0.0
        self._free_at = time.monotonic()
        self._turn = asyncio.Lock()

    async def wait(self, tokens: float) -> None:
        """Wait for the turn of a request with this expected number of tokens."""
        if not self._seconds_per_token:
            return
        async with self._turn:
            while (delay := self._free_at - time.monotonic()) > 0:
                await asyncio.sleep(min(delay, POLL_SECONDS))
            start = max(self._free_at, time.monotonic() - CATCH_UP_SECONDS)
            self._free_at = start + tokens * self._seconds_per_token

    def correct(self, tokens: float) -> None:
        """Add tokens that were not expected; negative: fewer than expected."""
        self._free_at += tokens * self._seconds_per_token


class Meter:
    """Counts tokens and costs, from the journal on, and says what to expect of a request."""

    def __init__(self, settings: Settings, totals: Totals) -> None:
        self._settings = settings
        self._output_sum = float(totals.output_tokens)
        self._counted_input = 0.0
        self._units = 0.0
        if totals.ratio is not None:
            self._counted_input = totals.ratio * 1e3
            self._units = 1e3
        self._worst = totals.worst_ratio
        self.answers = totals.answers
        self.input_tokens = totals.input_tokens + totals.lost_input
        self.output_tokens = totals.output_tokens + totals.lost_output

    @property
    def cost(self) -> float:
        """The costs so far; what was sent and not answered counts with the most it can cost."""
        return self._settings.prices.cost(self.input_tokens, self.output_tokens)

    @property
    def calibrated(self) -> bool:
        """Whether an answer has told how many tokens a request of some size has."""
        return self.answers > 0

    def expected(self, units: float) -> tuple[float, float]:
        """Return the expected input and output tokens of a request of this size."""
        ratio = self._counted_input / self._units if self._units else 1.0
        output = self._settings.teacher.max_tokens
        return units * ratio, self._output_sum / self.answers if self.answers else output

    def most(self, units: float) -> tuple[int, int]:
        """Return input and output tokens that a request of this size does not pass."""
        ratio = BYTES_PER_TOKEN if self._worst is None else self._worst * SAFETY
        return int(units * ratio) + 1, self._settings.teacher.max_tokens

    def answered(self, answer: Answer, units: float, counted: bool) -> None:
        """Count an answer. counted: whether its tokens are the endpoint's count."""
        assert answer.input_tokens is not None
        assert answer.output_tokens is not None
        self.answers += 1
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens
        self._output_sum += answer.output_tokens
        if counted:
            self._counted_input += answer.input_tokens
            self._units += units
            self._worst = max(self._worst or 0.0, answer.input_tokens / units)

    def lost(self, units: float) -> None:
        """Count a request that may have been paid for without an answer."""
        input_tokens, output_tokens = self.most(units)
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens


class Budget:
    """Lets a request go only if the costs cannot pass the budget, with those in flight counted.

    Until the first answer has told how many tokens a request has, requests go one at a time.
    """

    def __init__(self, settings: Settings, meter: Meter) -> None:
        self._prices = settings.prices
        self._budget = settings.budget
        self._meter = meter
        self._changed = asyncio.Condition()
        self._held = 0.0
        self._in_flight = 0

    async def reserve(self, units: float) -> float:
        """Wait for room for a request, and return what is held for it.

        Raises:
            BudgetSpent: there is none, and none will come.
        """
        if self._budget is None:
            return 0.0
        async with self._changed:
            while not self._fits(cost := self._prices.cost(*self._meter.most(units))):
                if self._in_flight == 0:
                    raise BudgetSpent
                await self._changed.wait()
            self._held += cost
            self._in_flight += 1
        return cost

    async def release(self, held: float) -> None:
        """Give back what was held for a request that has ended and is counted."""
        if self._budget is None:
            return
        async with self._changed:
            self._held -= held
            self._in_flight -= 1
            self._changed.notify_all()

    def _fits(self, cost: float) -> bool:
        assert self._budget is not None
        if self._in_flight and not self._meter.calibrated:
            return False
        return self._meter.cost + self._held + cost <= self._budget
