"""Verifiable rewards: grading of answers, and the score that verl's reward managers call.

Importing this package loads neither torch nor verl nor Ray.
"""

from verl_prism.response import parse_response
from verl_prism.rewards.grader.grading import grade
from verl_prism.rewards.score import compute_score

__all__ = ["compute_score", "grade", "parse_response"]
