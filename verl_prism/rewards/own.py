"""A reward function of the user's own (`prism.reward.function`), in place of the grader.

    def reward(data_source, solution_str, ground_truth, extra_info): ...

The arguments are those that verl gives to a reward function, by name: the row's `data_source`, the
decoded response, the row's `reward_model.ground_truth` and its `extra_info` (None if the row has
none). The function returns a number, or a dictionary with the number as `score`. Other entries of
the dictionary, numbers or strings, are logged. Rewards of one run all have the same entries.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from verl_prism.errors import UserError
from verl_prism.response import Response
from verl_prism.rewards.user_function import load_function

KEY = "prism.reward.function"
ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")

RewardFunction = Callable[..., Any]
Score = dict[str, float | str]


@cache
def load_reward(spec: str, key: str = KEY) -> RewardFunction:
    """Return the reward function that a setting names.

    key: the setting, for messages.

    Raises:
        UserError: see `load_function`.
    """
    return load_function(key, spec, ARGUMENTS)


def own_score(
    spec: str,
    data_source: str,
    response: Response,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None,
    key: str = KEY,
) -> Score:
    """Return the user's reward of one response, with the entries that our metrics need.

    key: the setting that names the function, for messages.
    acc: the score, unless the function returns an entry of that name.
    format, fault: as in `compute_score`, unless the function returns an entry of that name.

    Raises:
        UserError: the function returned no number, or one that is not finite.
    """
    result = load_reward(spec, key)(
        data_source=data_source,
        solution_str=response.text,
        ground_truth=ground_truth,
        extra_info=extra_info,
    )
    entries = result if isinstance(result, Mapping) else {"score": result}
    setting = f"{key}={spec}"
    checked = {name: _checked(setting, name, value) for name, value in entries.items()}
    if not isinstance(checked.get("score"), float):
        raise UserError(
            f"{setting} returned {result!r}; return a number, or a dictionary "
            "with a number as its entry 'score'"
        )
    defaults: Score = {
        "acc": checked["score"],
        "format": float(response.valid),
        "fault": str(response.fault or ""),
    }
    return defaults | checked


def _checked(setting: str, name: str, value: Any) -> float | str:
    """Return a finite number as a float, whatever library it is from, and a string as it is."""
    if isinstance(value, str):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(
            f"{setting} returned {name}={value!r}; entries are numbers or strings"
        ) from None
    if not math.isfinite(number):
        raise UserError(f"{setting} returned {name}={number}; return a finite number")
    return number
