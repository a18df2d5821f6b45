"""One step of the discriminator: it scores groups and learns from them, together with the other ranks.

A score, loss or gradient that is not finite, on whichever rank, changes no parameter: all ranks agree on it after the
backward pass, so that none is left alone in the middle of a collective, and the step is counted as `nonfinite`.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from verl_prism.config import Discriminator as Settings
from verl_prism.discriminator.batch import VIEWS, Group, SpanEncoder
from verl_prism.discriminator.loss import (
    GroupScores,
    LossWeights,
    mean_accuracy,
    pair_metrics,
    pair_sums,
)
from verl_prism.discriminator.model import PrismDiscriminatorForTokenClassification as Discriminator
from verl_prism.discriminator.ranks import Ranks
from verl_prism.discriminator.update import (
    Autocast,
    Backward,
    GradientSync,
    MiniBatch,
    backward_groups,
    score_groups,
)


@dataclass(frozen=True)
class StepSettings:
    """What a step does; `prism.discriminator` in trainer_configs/prism.yaml says what each means."""

    weights: LossWeights
    max_tokens: int
    updates: int = 1
    skip_above_accuracy: float | None = None
    max_nonfinite: int = 3

    @classmethod
    def of(cls, settings: Settings) -> "StepSettings":
        weights = LossWeights(
            score_regularization=settings.score_regularization,
            balance=settings.balance_coef,
            label_smoothing=settings.label_smoothing,
            margin=settings.margin,
            gradient_penalty=settings.gradient_penalty,
        )
        return cls(
            weights,
            settings.micro_batch_tokens,
            settings.updates_per_step,
            settings.skip_above_accuracy,
            settings.max_nonfinite,
        )


@dataclass(frozen=True)
class Optimization:
    """How the holder of the parameters changes them.

    step: clips the gradients, changes the parameters unless the gradients' norm is not finite, and returns that norm.
    clear: forgets the gradients.
    """

    step: Callable[[], float]
    clear: Callable[[], None]


@dataclass(frozen=True)
class StepResult:
    """The scores of this rank's groups before the step, not to be used where `nonfinite`; metrics of all ranks."""

    scores: GroupScores
    metrics: dict[str, float]

    @property
    def nonfinite(self) -> bool:
        return bool(self.metrics["nonfinite"])


@dataclass(frozen=True)
class _Update:
    backward: Backward
    metrics: dict[str, float]
    nonfinite: bool = False
    skipped: bool = False


class DiscriminatorStep:
    """Called with a rank's groups of a mini-batch, once per step.

    faults: folder that the groups are written to when the run stops over numbers that are not finite.
    steps: made before.
    """

    def __init__(
        self,
        model: Discriminator,
        encoder: SpanEncoder,
        settings: StepSettings,
        optimization: Optimization,
        ranks: Ranks,
        faults: Path,
        *,
        sync: GradientSync = lambda last: nullcontext(),
        autocast: Autocast = nullcontext,
        steps: int = 0,
    ):
        self._model, self._encoder, self._settings = model, encoder, settings
        self._optimization, self._ranks, self._faults = optimization, ranks, faults
        self._sync, self._autocast = sync, autocast
        self._steps, self._nonfinite_in_a_row = steps, 0

    def __call__(self, groups: Sequence[Group]) -> StepResult:
        """With one update, the scores are those of its own forward pass.

        Raises:
            FloatingPointError: on all ranks, when `max_nonfinite` steps in a row were not finite.
        """
        self._steps += 1
        batch = MiniBatch(self._encoder, groups, self._settings.max_tokens)
        pairs, rounds = int(self._ranks.sum([batch.pairs])[0]), int(self._ranks.max(len(batch)))
        scores = self.score(batch, rounds) if self._settings.updates > 1 else None
        updates: list[_Update] = []
        while len(updates) < self._settings.updates and not (updates and updates[-1].nonfinite):
            updates.append(self._update(batch, pairs, rounds))
        result = StepResult(scores or updates[0].backward.scores, _metrics(updates))
        self._watch(groups, result)
        return result

    def score(self, batch: MiniBatch, rounds: int) -> GroupScores:
        return score_groups(
            self._model, batch, rounds=rounds, autocast=self._autocast, device=self._ranks.device
        )

    def _update(self, batch: MiniBatch, pairs: int, rounds: int) -> _Update:
        """Without a valid pair on any rank there is nothing to learn from, and no parameter changes."""
        backward = backward_groups(
            self._model,
            batch,
            self._settings.weights,
            pairs=pairs,
            ranks=self._ranks.size,
            rounds=rounds,
            sync=self._sync,
            autocast=self._autocast,
            device=self._ranks.device,
        )
        metrics, finite = self._reduce(backward)
        if not finite or not pairs or self._accurate_enough(metrics):
            self._optimization.clear()
            return _Update(backward, metrics, nonfinite=not finite, skipped=finite)
        norm = self._optimization.step()
        self._optimization.clear()
        if not math.isfinite(norm):
            return _Update(backward, metrics, nonfinite=True)
        return _Update(backward, metrics | {"grad_norm": norm})

    def _accurate_enough(self, metrics: dict[str, float]) -> bool:
        limit = self._settings.skip_above_accuracy
        return limit is not None and mean_accuracy(metrics) > limit

    def _reduce(self, backward: Backward) -> tuple[dict[str, float], bool]:
        """Metrics of all ranks, from sums that are added up over them at once; and whether all is finite."""
        pairs = pair_sums(backward.scores)
        own = [
            *pairs.values(),
            backward.loss,
            float(not backward.finite),
            *backward.expert_choices.flatten().tolist(),
        ]
        total = self._ranks.sum(own)
        means = pair_metrics(dict(zip(pairs, total, strict=False)))
        loss, faults, *choices = total[len(pairs) :]
        if faults:
            return {name: means[name] for name in ("pairs", "valid_ratio")}, False
        load = _busiest_experts(torch.tensor(choices).reshape(backward.expert_choices.shape))
        return means | {"loss": loss} | load, True

    def _watch(self, groups: Sequence[Group], result: StepResult) -> None:
        self._nonfinite_in_a_row = self._nonfinite_in_a_row + 1 if result.nonfinite else 0
        if self._nonfinite_in_a_row < self._settings.max_nonfinite:
            return
        file = self._faults / f"nonfinite-{self._steps}-rank{self._ranks.rank}.pt"
        write_batch(file, groups, result.scores)
        self._ranks.wait()  # a rank that ends takes the others with it
        raise FloatingPointError(
            f"scores, loss or gradients of the discriminator were not finite in {self._nonfinite_in_a_row} steps in a "
            f"row; no parameter was changed by them, and the last one's texts and scores are in {file}. Lower "
            "prism.discriminator.lr, or start again from the warmed-up discriminator"
        )


def _metrics(updates: Sequence[_Update]) -> dict[str, float]:
    """Those of the first update, which the step's scores come from, and counts over all."""
    return updates[0].metrics | {
        "updates_skipped": float(sum(update.skipped for update in updates)),
        "nonfinite": float(any(update.nonfinite for update in updates)),
    }


def _busiest_experts(choices: Tensor) -> dict[str, float]:
    """For choices[layers, sets, experts]: the share of a set's choices that fell on its busiest expert.

    The mean over layers that have tokens of the set; absent where none has.
    """
    metrics = {}
    for name, of_set in zip((*VIEWS, "prompt"), choices.unbind(1), strict=True):
        used = of_set[of_set.sum(-1) > 0]
        if len(used):
            metrics[f"busiest_expert/{name}"] = (used.amax(-1) / used.sum(-1)).mean().item()
    return metrics


def write_batch(file: Path, groups: Sequence[Group], scores: GroupScores) -> None:
    """Everything that the scores were computed from, to be read with `torch.load`."""

    def texts(spans) -> dict[str, str] | None:
        return None if spans is None else {view.value: spans[view] for view in VIEWS}

    content = {
        "groups": [
            {
                "prompt_ids": group.prompt.input_ids,
                "pixel_values": group.prompt.pixel_values,
                "image_grid_thw": group.prompt.image_grid_thw,
                "teacher": texts(group.teacher),
                "students": [texts(spans) for spans in group.students],
            }
            for group in groups
        ],
        "teacher_scores": scores.teacher,
        "student_scores": scores.student,
        "valid": scores.valid,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)
