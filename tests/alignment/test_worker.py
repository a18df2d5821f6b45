"""The fields that a rank of the discriminator writes back to the rows that it has scored."""

import torch

from verl_prism.alignment.worker import VALID_FIELD, score_fields
from verl_prism.discriminator import GroupScores, StepResult

NAN = torch.nan


def scores(student: torch.Tensor) -> GroupScores:
    return GroupScores(torch.zeros(2, 2), student, torch.tensor([[True, False], [True, True]]))


def test_valid_rows_get_their_scores():
    student = torch.arange(8.0).reshape(2, 2, 2)
    fields = score_fields(StepResult(scores(student), {"nonfinite": 0.0}))
    assert fields[VALID_FIELD].tolist() == [True, False, True, True]
    expected = {"perception_score": [0.0, NAN, 2.0, 3.0], "reasoning_score": [4.0, NAN, 6.0, 7.0]}
    for field, values in expected.items():
        torch.testing.assert_close(fields[field], torch.tensor(values), equal_nan=True)


def test_non_finite_step_leaves_validity_as_it_is():
    student = torch.full((2, 2, 2), NAN)
    fields = score_fields(StepResult(scores(student), {"nonfinite": 1.0}))
    assert fields[VALID_FIELD].tolist() == [True, False, True, True]
