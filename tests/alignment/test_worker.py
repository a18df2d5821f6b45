"""What a rank of the discriminator writes beside the rows that it has scored."""

import pytest
import torch

from verl_prism.alignment.worker import score_fields
from verl_prism.discriminator.loss import GroupScores
from verl_prism.discriminator.step import StepResult

SCORES = GroupScores(
    torch.zeros(2, 2),
    torch.arange(8.0).reshape(2, 2, 2),
    torch.tensor([[True, False], [True, True]]),
)


def test_each_valid_row_gets_its_scores_and_an_invalid_one_none():
    fields = score_fields(StepResult(SCORES, {"nonfinite": 0.0}))
    nan = torch.nan
    torch.testing.assert_close(
        fields["perception_score"], torch.tensor([0.0, nan, 2.0, 3.0]), equal_nan=True
    )
    torch.testing.assert_close(
        fields["reasoning_score"], torch.tensor([4.0, nan, 6.0, 7.0]), equal_nan=True
    )


@pytest.mark.parametrize("field", ["perception_score", "reasoning_score"])
def test_no_row_has_a_score_after_a_step_that_was_not_finite(field):
    assert score_fields(StepResult(SCORES, {"nonfinite": 1.0}))[field].isnan().all()
