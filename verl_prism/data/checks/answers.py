"""Checks of the columns that rewards read."""

from collections.abc import Mapping
from typing import Any

from verl_prism.data.checks.problem import Reason, RowError


def check_answer(row: Mapping[str, Any], *, needs_gold: bool) -> None:
    """Check the gold answer, its equivalents and the data source of a row.

    needs_gold: whether the built-in grader will read the gold answer.
    """
    check_data_source(row)
    check_reward_model(row, needs_gold=needs_gold)


def check_data_source(row: Mapping[str, Any]) -> None:
    """Check the data source of a row."""
    if not isinstance(row["data_source"], str):
        raise RowError(
            Reason.DATA_SOURCE, f"data_source is {row['data_source']!r}; it should be a string"
        )


def check_reward_model(row: Mapping[str, Any], *, needs_gold: bool) -> None:
    """Check the gold answer of a row and its equivalents."""
    reward_model = row["reward_model"]
    if reward_model is None:
        raise RowError(
            Reason.GOLD_ANSWER,
            'reward_model is null; it should be {"style": "rule", "ground_truth": …}',
        )
    if needs_gold:
        _check_gold(reward_model["ground_truth"])
    _check_equivalent_answers(row)


def _check_gold(gold: Any) -> None:
    if gold is None:
        raise RowError(
            Reason.GOLD_ANSWER,
            "reward_model.ground_truth is null; write the answer as a string, or remove the row",
        )
    if not isinstance(gold, str):
        raise RowError(
            Reason.GOLD_ANSWER,
            f"reward_model.ground_truth is {gold!r}; write it as a string, '{gold}'",
        )


def _check_equivalent_answers(row: Mapping[str, Any]) -> None:
    if row["reward_model"].get("equivalent_answers") is not None:
        raise RowError(
            Reason.EQUIVALENT_ANSWERS,
            "equivalent_answers is in reward_model, from which verl passes on only ground_truth; "
            "move it to extra_info",
        )
    answers = (row.get("extra_info") or {}).get("equivalent_answers")
    if answers is None:
        return
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise RowError(
            Reason.EQUIVALENT_ANSWERS,
            f"equivalent_answers={answers!r} in extra_info is not a list of texts",
        )
