"""The verifiable reward of stage 3: accuracy and format, nothing without a valid format."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from verl_prism.config import Judge
from verl_prism.errors import UserError
from verl_prism.response import Response, parse_response
from verl_prism.rewards.grader import math_verify_pool
from verl_prism.rewards.grader.grading import grade
from verl_prism.rewards.opinion import Opinion

Score = dict[str, float | str]


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    accuracy_weight: float = 0.8,
    format_weight: float = 0.2,
    **_: Any,
) -> Score:
    """Reward of one response, in the signature that verl's reward managers call (paper: r = r_acc + r_fmt).

    solution_str: the decoded response, special tokens stripped. extra_info: may hold `equivalent_answers`, further
    golds. Returns `score` = accuracy_weight * acc + format_weight * format, both 0.0 or 1.0 and both 0.0 where the
    format is invalid; `fault` says why it is invalid, and is "" otherwise. verl leaves strings out of its averages.
    """
    return score_response(
        parse_response(solution_str),
        ground_truth,
        extra_info,
        accuracy_weight=accuracy_weight,
        format_weight=format_weight,
    )


def score_response(
    response: Response,
    gold: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    accuracy_weight: float = 0.8,
    format_weight: float = 0.2,
) -> Score:
    """Return `compute_score` of a response that is already parsed."""
    math_verify_pool.start()
    if response.fault is not None:
        return {"score": 0.0, "acc": 0.0, "format": 0.0, "fault": str(response.fault)}
    gold, *equivalents = accepted_answers(gold, extra_info)
    acc = float(grade(response.answer, gold, equivalents))
    return {"score": accuracy_weight * acc + format_weight, "acc": acc, "format": 1.0, "fault": ""}


async def compute_judged_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    judge: Mapping[str, Any],
    reward_workers: int,
    accuracy_weight: float = 0.8,
    **kwargs: Any,
) -> Score:
    """`compute_score` and, where it finds a wrong answer in a valid format, a judge's opinion of that answer.

    What the rules accept stands, and what has no valid format earns nothing: the judge is not asked, so that it can
    only raise a score. judge: `prism.reward.judge`, its concurrency and budget shared evenly by `reward_workers`
    processes; without an endpoint the result is `compute_score`'s. With one it also has `judged`, 0.0 where there
    should be a verdict and is none and therefore the rules' stands, else 1.0, and `opinion`, the `Opinion`.

    Raises:
        UserError: the endpoint is down (`when_down: stop`), does not know the model, or refuses the key.
    """
    weights = {"accuracy_weight": accuracy_weight, **kwargs}
    score = await asyncio.to_thread(
        compute_score, data_source, solution_str, ground_truth, extra_info, **weights
    )
    settings = Judge.model_validate(dict(judge))
    if settings.endpoint is None:
        return score
    from verl_prism.rewards.judge import shared_client  # brings a second's worth of client library

    opinion = Opinion.NOT_ASKED
    if score["format"] == 1.0 and score["acc"] == 0.0:
        accepted, answer = (
            accepted_answers(ground_truth, extra_info),
            parse_response(solution_str).answer,
        )
        opinion = await shared_client(settings, reward_workers).opinion(accepted, answer)
    if opinion is Opinion.RIGHT:
        score |= {"score": float(score["score"]) + accuracy_weight, "acc": 1.0}
    return score | {"judged": float(opinion.settled), "opinion": str(opinion)}


def accepted_answers(ground_truth: str, extra_info: Mapping[str, Any] | None) -> Sequence[str]:
    """The gold answer and its equivalents; a parquet file has None where a row has none."""
    equivalents = (
        extra_info["equivalent_answers"]
        if extra_info and "equivalent_answers" in extra_info
        else None
    )
    if isinstance(equivalents, str):  # as a list it would be one gold answer per character
        raise UserError(
            f"extra_info.equivalent_answers={equivalents!r} is a text; it should be a list of texts"
        )
    return [ground_truth, *(equivalents if equivalents is not None else ())]
