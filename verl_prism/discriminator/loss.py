"""The discriminator's loss and what is reported of it, as pure functions of scores."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from verl_prism.discriminator.batch import VIEWS, ScoreIndex


@dataclass(frozen=True)
class LossWeights:
    """What the loss is made of besides the pairs; the last three are off by default.

    score_regularization: multiplies the mean squared score.
    balance: multiplies the load-balancing loss.
    label_smoothing: share, in [0, 0.5), of each pair that is taken the other way round.
    margin: what the teacher's score must be ahead by before a pair costs less than log 2.
    gradient_penalty: multiplies `gradient_penalty`.
    """

    score_regularization: float = 0.001
    balance: float = 0.01
    label_smoothing: float = 0.0
    margin: float = 0.0
    gradient_penalty: float = 0.0


@dataclass(frozen=True)
class GroupScores:
    """Scores of G groups of N students; those of invalid responses mean nothing."""

    teacher: Tensor  # [views, G]
    student: Tensor  # [views, G, N]
    valid: Tensor  # [G, N] bool

    @classmethod
    def gather(cls, spans: Tensor, index: ScoreIndex) -> "GroupScores":
        """Scores of groups from the scores[S] of a pack's spans."""
        teacher, student, valid = (
            part.to(spans.device) for part in (index.teacher, index.student, index.valid)
        )
        return cls(spans[teacher], spans[student], valid)

    @property
    def finite(self) -> bool:
        return bool(self.teacher.isfinite().all() and self.student[:, self.valid].isfinite().all())

    def detach(self) -> "GroupScores":
        return GroupScores(
            self.teacher.detach().float().cpu(),
            self.student.detach().float().cpu(),
            self.valid.cpu(),
        )

    def pairs(self) -> tuple[Tensor, Tensor]:
        """The teacher's and the student's scores[views, pairs] of every valid pair."""
        teacher = self.teacher[:, :, None].expand_as(self.student)
        return teacher[:, self.valid], self.student[:, self.valid]


def pairwise_loss(scores: GroupScores, pairs: int, weights: LossWeights) -> Tensor:
    """Bradley-Terry per view plus the score regulariser, summed over these groups' pairs and divided by `pairs`.

    With d = t - s - margin, label smoothing ε and regularisation λ (paper, eq. 2, where margin and ε are 0):
    Σ_views Σ_pairs [-(1 - ε) logsigmoid(d) - ε logsigmoid(-d) + λ/4 (t² + s²)] / pairs. `pairs` is the number of valid
    pairs of the whole mini-batch, over all micro-batches and ranks: each pair weighs the same wherever it is computed.
    """
    teacher, student = scores.pairs()
    ahead = teacher - student - weights.margin
    smoothing = weights.label_smoothing
    bradley_terry = ((1 - smoothing) * F.softplus(-ahead) + smoothing * F.softplus(ahead)).sum()
    squares = (teacher.square() + student.square()).sum()
    return (bradley_terry + weights.score_regularization / 4 * squares) / max(pairs, 1)


def gradient_penalty(
    scores: GroupScores, perturbed: GroupScores, noise: float, pairs: int
) -> Tensor:
    """Mean squared norm of the scores' gradients with respect to the text's input embeddings, by finite differences.

    Σ_views Σ_pairs [(Δt/noise)² + (Δs/noise)²] / (4 pairs), with Δ the change of a score when each text token's
    embedding is moved by Gaussian noise whose standard deviation is `noise` times the embedding's root mean square.
    Over draws its mean is, for small noise, Σ_tokens (rms · |∂score/∂embedding|)². No second derivative is taken: fused
    attention has none, and would mix the gradients of a pack's scores. Image tokens are not moved.
    """
    changes = torch.stack(perturbed.pairs()) - torch.stack(scores.pairs())
    return (changes / noise).square().sum() / (4 * max(pairs, 1))


def pair_sums(scores: GroupScores) -> dict[str, float]:
    """Sums over valid pairs, to be added up over ranks and turned into means by `pair_metrics`."""
    teacher, student = (side.double() for side in scores.pairs())
    sums = {"pairs": float(teacher.shape[1]), "responses": float(scores.valid.numel())}
    for v, view in enumerate(VIEWS):
        margin = teacher[v] - student[v]
        sums[f"{view}/accuracy"] = (
            ((margin > 0).double() + 0.5 * (margin == 0).double()).sum().item()
        )
        sums[f"{view}/ties"] = (margin == 0).double().sum().item()
        sums[f"{view}/margin"] = margin.sum().item()
        sums[f"{view}/loss"] = F.softplus(-margin).sum().item()
        sums[f"{view}/teacher_score"] = teacher[v].sum().item()
        sums[f"{view}/student_score"] = student[v].sum().item()
    return sums


def pair_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Means per valid pair; absent where there is no pair. A tie, identical text, is half an accurate pair."""
    pairs, responses = sums["pairs"], sums["responses"]
    metrics = {"pairs": pairs, "valid_ratio": pairs / responses}
    if pairs:
        metrics |= {
            name: value / pairs
            for name, value in sums.items()
            if name not in ("pairs", "responses")
        }
    return metrics


def mean_accuracy(metrics: Mapping[str, float]) -> float:
    """Over both views, from `pair_metrics` of at least one pair."""
    return sum(metrics[f"{view}/accuracy"] for view in VIEWS) / len(VIEWS)
