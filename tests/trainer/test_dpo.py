"""DPO's loss against an obvious oracle, and the examples of a pair."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional as F

from verl_prism.data.pair_dataset import Demonstrations
from verl_prism.trainer.dpo import DpoLoss, dpo_terms, sequence_log_probs

BETA = 0.1


def nested(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def oracle(teacher: float, student: float, reference: tuple[float, float]) -> float:
    ratio = (teacher - reference[0]) - (student - reference[1])
    return -math.log(1 / (1 + math.exp(-BETA * ratio)))


def test_the_loss_is_that_of_the_paper():
    log_probs = torch.tensor([-10.0, -14.0, -30.0, -30.0])
    reference = torch.tensor([-12.0, -11.0, -29.0, -35.0])
    losses, values = dpo_terms(log_probs, reference, torch.tensor([0.0, 1.0]), BETA)
    expected = [oracle(-10, -14, (-12, -11)), oracle(-30, -30, (-29, -35))]
    assert losses.tolist() == pytest.approx(expected)
    assert values["accuracy"].tolist() == [1, 0.5]
    assert values["margin"].tolist() == pytest.approx([0.5, -0.6])
    assert values["ties"].tolist() == [0, 1]
    assert values["teacher_reward"].tolist() == pytest.approx([0.2, -0.1])
    assert values["student_reward"].tolist() == pytest.approx([-0.3, 0.5])


def test_only_the_tokens_of_a_response_count():
    """The log-probability at a token is that of the token after it."""
    masks = [torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1])]
    log_probs = [torch.tensor([-1.0, -2.0, -4.0, -8.0]), torch.tensor([-16.0, -32.0, -64.0])]
    sums = sequence_log_probs(nested(log_probs), nested(masks))
    assert sums.tolist() == [-2 - 4, -16 - 32]


@pytest.mark.parametrize("ranks", [1, 2])
def test_shares_of_micro_batches_and_ranks_add_up(ranks):
    """The gradients of ranks are averaged, so each rank's loss is multiplied by their number."""
    torch.manual_seed(0)
    log_probs = torch.randn(8, 5)
    masks = torch.tensor([[0, 1, 1, 1, 1]] * 8)
    reference = torch.randn(8)
    ties = torch.tensor([0.0, 0.0, 1.0, 0.0])
    whole, values = dpo_terms((log_probs[:, :4]).sum(-1), reference, ties, BETA)
    total = 0.0
    accuracy = 0.0
    dpo_loss = DpoLoss(BETA)
    for start in (0, 2, 6):
        part = slice(start, {0: 2, 2: 6, 6: 8}[start])
        data = TensorDict(
            {
                "loss_mask": nested(list(masks[part])),
                "reference": reference[part],
                "tie": nested(list(ties.repeat_interleave(2)[part, None])),
                "pair": nested(list(torch.tensor([9, 9, 7, 7, 5, 5, 6, 6])[part, None])),
            },
            batch_size=len(masks[part]),
        )
        data.set_non_tensor("global_batch_size", 4)
        data.set_non_tensor("dp_size", ranks)
        output = {"log_probs": nested(list(log_probs[part]))}
        loss, metrics = dpo_loss(output, data)
        total += loss.item() / ranks
        accuracy += metrics["dpo/accuracy"]
    assert total == pytest.approx(whole.mean().item(), rel=1e-5)
    assert accuracy == pytest.approx(values["accuracy"].mean().item())
    margins = [dpo_loss.marks[pair]["margin"] for pair in (9, 7, 5, 6)]
    assert margins == pytest.approx(values["margin"].tolist())


def test_the_gradient_pushes_the_teacher_up_and_the_student_down():
    log_probs = torch.tensor([-10.0, -10.0], requires_grad=True)
    losses, _ = dpo_terms(log_probs, log_probs.detach(), torch.zeros(1), BETA)
    losses.sum().backward()
    assert log_probs.grad.tolist() == pytest.approx([-BETA / 2, BETA / 2])
    assert losses.item() == pytest.approx(-F.logsigmoid(torch.zeros(())).item())


class FourRows:
    """Stands in for `ModelRows`: rows with three responses."""

    rows = None  # not used

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> dict:
        return {
            "prompt": [{"role": "user", "content": f"question {row}"}],
            "images": [row],
            "teacher_response": f"teacher {row}",
            "student_responses": [f"student {row}.{response}" for response in range(3)],
        }


def test_each_of_the_first_responses_makes_a_pair_with_the_teachers():
    demonstrations = Demonstrations(FourRows(), responses=2)
    rows = [demonstrations[index] for index in range(len(demonstrations))]
    texts = [row["messages"][-1]["content"][0]["text"] for row in rows]
    assert texts[:6] == [
        *("teacher 0", "student 0.0", "teacher 0", "student 0.1"),
        *("teacher 1", "student 1.0"),
    ]
    assert len(texts) == len(demonstrations) == 4 * 2 * 2
    assert demonstrations[7]["messages"][0] == {"role": "user", "content": "question 1"}
    assert demonstrations[7]["images"] == [1]
