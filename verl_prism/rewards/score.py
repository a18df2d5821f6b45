"""The verifiable reward of stage 3: accuracy plus format, and zero if the format is invalid."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from verl_prism.errors import UserError
from verl_prism.response import Response, parse_response
from verl_prism.rewards.grader import math_verify_pool
from verl_prism.rewards.grader.grading import grade
from verl_prism.rewards.opinion import Opinion
from verl_prism.rewards.own import Score, own_score


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
    """Return the reward of one response, r = r_acc + r_fmt in the paper.

    The signature is the one that verl's reward managers call. Other keyword arguments, which
    verl adds to the call, are ignored, and so is `data_source`.

    Args:
        data_source: name of the data set.
        solution_str: the decoded response, without the tokenizer's special tokens.
        ground_truth: the gold answer.
        extra_info: the row's `extra_info`. Its list `equivalent_answers`, if present and not
            None, holds further gold answers.
        accuracy_weight: reward of a correct answer.
        format_weight: reward of a valid format.

    Returns:
        score: accuracy_weight * acc + format_weight * format.
        acc: 1.0 if the format is valid and the answer is correct, else 0.0.
        format: 1.0 if the format is valid, else 0.0.
        fault: why the format is invalid (a `FormatFault`), "" if it is valid. verl leaves strings
            out of its averages.

    Raises:
        UserError: `equivalent_answers` is a string instead of a list.
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
    first, *equivalents = accepted_answers(gold, extra_info)
    acc = float(grade(response.answer, first, equivalents))
    score = accuracy_weight * acc + format_weight
    return {"score": score, "acc": acc, "format": 1.0, "fault": ""}


async def compute_judged_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    judge: Mapping[str, Any],
    reward_workers: int,
    function: str | None = None,
    accuracy_weight: float = 0.8,
    format_weight: float = 0.2,
    **_: Any,
) -> Score:
    """Return `compute_score`, and ask a judge about answers that the rules call wrong.

    The judge can only raise a score: it is not asked if the format is invalid.

    Args:
        function: the user's own reward function as "path/to/file.py:name"; it replaces all of this.
        judge: the config section `prism.reward.judge`; without an endpoint, the judge is off.
        reward_workers: number of processes that share the judge's concurrency and budget evenly.

    Returns:
        The keys of `compute_score` and, if the judge is on, `judged` and `opinion` (an `Opinion`).
        `judged` is 0.0 if the judge should have given a verdict but did not, else 1.0.

    Raises:
        UserError: the endpoint is down (if `when_down: stop`) or refuses the model or the key.
    """
    response = parse_response(solution_str)
    if function is not None:
        return await asyncio.to_thread(
            own_score, function, data_source, response, ground_truth, extra_info
        )
    score = await asyncio.to_thread(
        score_response,
        response,
        ground_truth,
        extra_info,
        accuracy_weight=accuracy_weight,
        format_weight=format_weight,
    )
    if judge["endpoint"] is None:
        return score
    from verl_prism.config import Judge
    from verl_prism.rewards.judge import shared_client  # its client library takes a second

    opinion = Opinion.NOT_ASKED
    if response.valid and score["acc"] == 0.0:
        client = shared_client(Judge.model_validate(dict(judge)), reward_workers)
        accepted = accepted_answers(ground_truth, extra_info)
        opinion = await client.opinion(accepted, response.answer)
    if opinion is Opinion.RIGHT:
        score |= {"score": float(score["score"]) + accuracy_weight, "acc": 1.0}
    return score | {"judged": float(opinion.settled), "opinion": str(opinion)}


def accepted_answers(ground_truth: str, extra_info: Mapping[str, Any] | None) -> Sequence[str]:
    """Return the gold answer and its equivalents, which a parquet file may store as None.

    Raises:
        UserError: an answer is not a string, or the equivalents are one.
    """
    extra_info = extra_info or {}
    equivalents = extra_info.get("equivalent_answers")
    if isinstance(equivalents, str):  # iterating it would make each character a gold answer
        raise UserError(
            f"extra_info.equivalent_answers={equivalents!r} is a string; "
            "it should be a list of strings"
        )
    accepted = [ground_truth]
    if equivalents is not None:
        accepted += equivalents
    for answer in accepted:
        if not isinstance(answer, str):
            row = f"row with extra_info.index={extra_info.get('index')}"
            raise UserError(
                f"{row}: gold answer {answer!r} is of type {type(answer).__name__}; "
                "write reward_model.ground_truth and equivalent_answers as strings"
            )
    return accepted
