"""Stage `eval`: the judge's opinion on answers that the rules call wrong."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from verl_prism.config import Judge, Prism
from verl_prism.rewards.judge import JudgeClient
from verl_prism.rewards.opinion import Opinion

Question = tuple[Sequence[str], str]  # the accepted answers, and the one to judge


def open_judge(prism: Prism) -> AbstractContextManager["EvaluationJudge | None"]:
    """Return the judge of `prism.reward.judge`; None without an endpoint."""
    settings = prism.reward.judge
    return nullcontext() if settings.endpoint is None else EvaluationJudge(settings)


class EvaluationJudge:
    """Asks the judge of `prism.reward.judge`, and counts its opinions per policy.

    Raises:
        UserError: the judge's key is not in the environment.
    """

    def __init__(self, settings: Judge) -> None:
        self._model = settings.model
        self._client = JudgeClient(settings)
        self._counts: dict[str, Counter[Opinion]] = {}
        # The client's semaphore and connections belong to one event loop.
        self._runner = asyncio.Runner()

    def __enter__(self) -> "EvaluationJudge":
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def opinions(self, policy: str, questions: Sequence[Question]) -> list[Opinion]:
        """Return an opinion for each answer of a policy. They are asked for at the same time.

        Raises:
            UserError: the judge is down (if `when_down: stop`) or refuses every request.
        """
        found = self._runner.run(self._ask(questions))
        self._counts.setdefault(policy, Counter()).update(found)
        return found

    async def _ask(self, questions: Sequence[Question]) -> list[Opinion]:
        asked = (self._client.opinion(accepted, answer) for accepted, answer in questions)
        return await asyncio.gather(*asked)

    def results(self) -> dict[str, Any]:
        """Return the number of each opinion per policy, as in results.json."""
        asked = [opinion for opinion in Opinion if opinion is not Opinion.NOT_ASKED]
        policies = {}
        for policy, counts in self._counts.items():
            policies[policy] = {str(opinion): counts[opinion] for opinion in asked}
        return {"model": self._model, "policies": policies}
