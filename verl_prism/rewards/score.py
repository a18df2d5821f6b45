"""The verifiable reward of stage 3: accuracy and format, nothing without a valid format."""

from typing import Any

from verl_prism.response import parse_response
from verl_prism.rewards.grading import grade


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    accuracy_weight: float = 0.8,
    format_weight: float = 0.2,
    **_: Any,
) -> dict[str, float | str]:
    """Reward of one response, in the signature that verl's reward managers call (paper: r = r_acc + r_fmt).

    solution_str: the decoded response, special tokens stripped. extra_info: may hold `equivalent_answers`, further
    golds. Returns `score` = accuracy_weight * acc + format_weight * format, both 0.0 or 1.0 and both 0.0 where the
    format is invalid; `fault` says why it is invalid, and is "" otherwise. verl leaves strings out of its averages.
    """
    response = parse_response(solution_str)
    if response.fault is not None:
        return {"score": 0.0, "acc": 0.0, "format": 0.0, "fault": str(response.fault)}
    equivalents = extra_info["equivalent_answers"] if extra_info and "equivalent_answers" in extra_info else None
    acc = float(grade(response.answer, ground_truth, equivalents if equivalents is not None else ()))
    return {"score": accuracy_weight * acc + format_weight, "acc": acc, "format": 1.0, "fault": ""}
