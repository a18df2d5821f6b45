"""The discriminator's loss and its metrics, as pure functions of scores."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from verl_prism.discriminator.batch import ScoreIndex
from verl_prism.discriminator.settings import LossSettings
from verl_prism.discriminator.spans import VIEWS


@dataclass(frozen=True)
class GroupScores:
    """Scores of G groups of N students. Scores of invalid responses have no meaning."""

    teacher: Tensor  # [views, G]
    student: Tensor  # [views, G, N]
    valid: Tensor  # [G, N] bool

    @classmethod
    def gather(cls, spans: Tensor, index: ScoreIndex) -> "GroupScores":
        """Collect the scores of groups from spans[S], the scores of a pack's spans."""
        device = spans.device
        return cls(
            teacher=spans[index.teacher.to(device)],
            student=spans[index.student.to(device)],
            valid=index.valid.to(device),
        )

    @property
    def finite(self) -> bool:
        """Whether the scores of the teachers and of all valid responses are finite."""
        teacher = self.teacher.isfinite().all()
        return bool(teacher and self.student[:, self.valid].isfinite().all())

    def detach(self) -> "GroupScores":
        """Return the scores as float32 on the CPU, without their graph."""
        teacher = self.teacher.detach().float().cpu()
        student = self.student.detach().float().cpu()
        return GroupScores(teacher, student, self.valid.cpu())

    def first(self, groups: int) -> "GroupScores":
        """Return the scores of the first groups."""
        return GroupScores(self.teacher[:, :groups], self.student[:, :groups], self.valid[:groups])

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return the teacher's and the student's scores[views, pairs] of every valid pair."""
        teacher = self.teacher[:, :, None].expand_as(self.student)
        return teacher[:, self.valid], self.student[:, self.valid]


def pairwise_loss(scores: GroupScores, pairs: int, settings: LossSettings) -> Tensor:
    """Return the Bradley-Terry loss per view plus the score regularization.

    With d = t - s - margin, label smoothing ε, regularization λ and imitation μ it is Σ_views
    Σ_pairs [-(1 - ε) logsigmoid(d) - ε logsigmoid(-d) + λ/4 (t² + s²) - μ t] / pairs. In the paper
    (eq. 2) margin, ε and μ are 0.

    Args:
        pairs: number of valid pairs of the whole mini-batch, over all micro-batches and ranks, so
            that a pair has the same weight wherever it is computed.
    """
    teacher, student = scores.pairs()
    ahead = teacher - student - settings.margin
    smoothing = settings.label_smoothing
    bradley_terry = ((1 - smoothing) * F.softplus(-ahead) + smoothing * F.softplus(ahead)).sum()
    squares = (teacher.square() + student.square()).sum()
    regularization = settings.score_regularization / 4 * squares
    imitation = -settings.imitation_coef * teacher.sum()
    return (bradley_terry + regularization + imitation) / max(pairs, 1)


def gradient_penalty(
    scores: GroupScores, perturbed: GroupScores, noise: float, pairs: int
) -> Tensor:
    """Estimate the mean squared gradient of the scores with respect to the text's embeddings.

    It is Σ_views Σ_pairs [(Δt/noise)² + (Δs/noise)²] / (4 pairs). Δ is the change of a score when
    Gaussian noise is added to the embedding of each text token, with a standard deviation of
    `noise` times the root mean square (rms) of the embedding. For small noise its expectation is
    Σ_tokens (rms · |∂score/∂embedding|)². Image tokens get no noise.

    Finite differences replace second derivatives: fused attention has none, and they would mix the
    gradients of the scores in a pack.
    """
    changes = torch.stack(perturbed.pairs()) - torch.stack(scores.pairs())
    return (changes / noise).square().sum() / (4 * max(pairs, 1))


def pair_sums(scores: GroupScores) -> dict[str, float]:
    """Return sums over valid pairs. Add them up over ranks, then call `pair_metrics`."""
    teacher, student = scores.pairs()
    sums = {"pairs": float(teacher.shape[1]), "responses": float(scores.valid.numel())}
    for v, view in enumerate(VIEWS):
        sums |= _view_sums(view.value, teacher[v].double(), student[v].double())
    return sums


def _view_sums(view: str, teacher: Tensor, student: Tensor) -> dict[str, float]:
    margin = teacher - student
    ahead = (margin > 0).double()
    tied = (margin == 0).double()
    return {
        f"{view}/accuracy": (ahead + 0.5 * tied).sum().item(),
        f"{view}/ties": tied.sum().item(),
        f"{view}/margin": margin.sum().item(),
        f"{view}/loss": F.softplus(-margin).sum().item(),
        f"{view}/teacher_score": teacher.sum().item(),
        f"{view}/student_score": student.sum().item(),
    }


def pair_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Return means per valid pair, or only the counts if there is no pair.

    A tie (identical text) counts as half an accurate pair.
    """
    pairs = sums["pairs"]
    metrics = {"pairs": pairs, "valid_ratio": pairs / sums["responses"]}
    if pairs:
        for name, total in sums.items():
            if name not in ("pairs", "responses"):
                metrics[name] = total / pairs
    return metrics


def mean_accuracy(metrics: Mapping[str, float]) -> float:
    """Return the mean accuracy of both views, from `pair_metrics` of at least one pair."""
    return sum(metrics[f"{view}/accuracy"] for view in VIEWS) / len(VIEWS)
