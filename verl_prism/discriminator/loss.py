"""The discriminator's loss and what is reported of it, as pure functions of scores."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from verl_prism.discriminator.batch import VIEWS, ScoreIndex


@dataclass(frozen=True)
class LossWeights:
    """`score_regularisation` multiplies the mean squared score, `balance` the load-balancing loss."""

    score_regularisation: float = 0.001
    balance: float = 0.01


@dataclass(frozen=True)
class GroupScores:
    """Scores of G groups of N students, NaN where a student's response is invalid."""

    teacher: Tensor  # [views, G]
    student: Tensor  # [views, G, N]

    @classmethod
    def gather(cls, rows: Tensor, index: ScoreIndex) -> "GroupScores":
        """Scores of groups from the scores[R] of a batch's rows."""
        index = ScoreIndex(*(part.to(rows.device) for part in (index.teacher, index.student, index.valid)))
        student = torch.where(index.valid, rows[index.student], torch.nan)
        return cls(rows[index.teacher], student)

    @classmethod
    def concat(cls, parts: "list[GroupScores]") -> "GroupScores":
        return cls(torch.cat([p.teacher for p in parts], dim=1), torch.cat([p.student for p in parts], dim=1))

    @property
    def valid(self) -> Tensor:
        """[G, N]"""
        return ~self.student[0].isnan()

    def detach(self) -> "GroupScores":
        return GroupScores(self.teacher.detach().float().cpu(), self.student.detach().float().cpu())

    def pairs(self) -> tuple[Tensor, Tensor]:
        """The teacher's and the student's scores[views, pairs] of every valid pair."""
        teacher = self.teacher[:, :, None].expand_as(self.student)
        return teacher[:, self.valid], self.student[:, self.valid]


def pairwise_loss(scores: GroupScores, pairs: int, weights: LossWeights) -> Tensor:
    """Bradley-Terry per view plus the score regulariser, summed over these groups' pairs and divided by `pairs`.

    Σ_views Σ_pairs [-logsigmoid(t - s) + λ/4 (t² + s²)] / pairs (paper, eq. 2). `pairs` is the number of valid pairs
    of the whole mini-batch, over all micro-batches and ranks: each pair weighs the same wherever it is computed.
    """
    teacher, student = scores.pairs()
    bradley_terry = F.softplus(student - teacher).sum()
    squares = (teacher.square() + student.square()).sum()
    return (bradley_terry + weights.score_regularisation / 4 * squares) / max(pairs, 1)


def pair_sums(scores: GroupScores) -> dict[str, float]:
    """Sums over valid pairs, to be added up over ranks and turned into means by `pair_metrics`."""
    teacher, student = (side.double() for side in scores.pairs())
    sums = {"pairs": float(teacher.shape[1]), "responses": float(scores.valid.numel())}
    for v, view in enumerate(VIEWS):
        margin = teacher[v] - student[v]
        sums[f"{view}/accuracy"] = ((margin > 0).double() + 0.5 * (margin == 0).double()).sum().item()
        sums[f"{view}/ties"] = (margin == 0).double().sum().item()
        sums[f"{view}/margin"] = margin.sum().item()
        sums[f"{view}/loss"] = F.softplus(-margin).sum().item()
        sums[f"{view}/teacher_score"] = teacher[v].sum().item()
        sums[f"{view}/student_score"] = student[v].sum().item()
    return sums


def pair_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Means per valid pair; absent where there is no pair. A tie, identical text, is half an accurate pair."""
    pairs, responses = sums["pairs"], sums["responses"]
    metrics = {"pairs": pairs, "valid_ratio": pairs / responses}
    if pairs:
        metrics |= {name: value / pairs for name, value in sums.items() if name not in ("pairs", "responses")}
    return metrics
