"""Samples of a step of the warm-up: the policy's responses, with their scores and the teacher's."""

from collections.abc import Sequence
from typing import Any

from verl_prism.discriminator import VIEWS, GroupScores
from verl_prism.report.step_samples import RESPONSE, ROW, STEP, evenly
from verl_prism.response import parse_response
from verl_prism.stages.warmup_data import Share


def step_samples(
    step: int,
    share: Share,
    scores: GroupScores,
    rollouts: Sequence[Sequence[str]],
    count: int,
) -> list[dict[str, Any]]:
    """Return at most `count` responses of the policy in a share, with their scores in each view.

    An invalid response has no scores. Mismatched teachers are left out.
    """
    places = []
    for group, (prompt, members) in enumerate(share.sources):
        for student, member in enumerate(members):
            if member < len(rollouts[prompt]):
                places.append((group, student))
    samples = []
    for group, student in evenly(places, count):
        prompt, members = share.sources[group]
        text = rollouts[prompt][members[student]]
        samples.append(
            {
                STEP: step,
                ROW: prompt,
                RESPONSE: text,
                "fault": str(parse_response(text).fault or ""),
                **_marks(scores, group, student),
            }
        )
    return samples


def _marks(scores: GroupScores, group: int, student: int) -> dict[str, float]:
    """Return the scores of the policy's response and of the teacher's, none if it is invalid."""
    if not scores.valid[group, student]:
        return {}
    marks = {}
    for number, view in enumerate(VIEWS):
        marks[view.value] = scores.student[number, group, student].item()
        marks[f"teacher_{view.value}"] = scores.teacher[number, group].item()
    return marks
