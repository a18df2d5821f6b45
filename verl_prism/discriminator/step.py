"""One step of the discriminator: score groups and learn from them, together with all other ranks.

Non-finite values never reach an update. After the backward pass all ranks agree whether scores,
loss and gradients are finite, so that no rank waits alone in a collective. If they are not, no
parameter changes and the step is counted as `nonfinite`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from verl_prism.discriminator.batch import Group, GroupEncoder
from verl_prism.discriminator.loss import GroupScores, mean_accuracy, pair_metrics, pair_sums
from verl_prism.discriminator.model import PrismDiscriminatorForTokenClassification as Discriminator
from verl_prism.discriminator.plan import RankPlan, shifted
from verl_prism.discriminator.ranks import Ranks
from verl_prism.discriminator.replay import Remembered, Replay
from verl_prism.discriminator.settings import StepSettings
from verl_prism.discriminator.spans import VIEWS
from verl_prism.discriminator.stored_groups import to_plain
from verl_prism.discriminator.update import (
    Backward,
    MiniBatch,
    Totals,
    backward_groups,
    score_groups,
)
from verl_prism.errors import UserError


@dataclass(frozen=True)
class Optimization:
    """How the owner of the parameters changes them.

    step: clips the gradients, changes the parameters if the gradient norm is finite, and returns
        the norm.
    clear: deletes the gradients.
    """

    step: Callable[[], float]
    clear: Callable[[], None]


@dataclass(frozen=True)
class StepResult:
    """Scores of this rank's groups from before the step, and metrics of all ranks.

    The scores must not be used if the step is `nonfinite`.
    """

    scores: GroupScores
    metrics: dict[str, float]

    @property
    def nonfinite(self) -> bool:
        """Whether a score, the loss or a gradient of some rank was not finite."""
        return bool(self.metrics["nonfinite"])


@dataclass(frozen=True)
class _Update:
    backward: Backward
    metrics: dict[str, float]
    nonfinite: bool = False
    skipped: bool = False


class DiscriminatorStep:
    """Makes the steps of one rank. Call it with the rank's groups of each mini-batch."""

    def __init__(
        self,
        model: Discriminator,
        settings: StepSettings,
        optimization: Optimization,
        ranks: Ranks,
        dump_folder: Path,
        steps: int = 0,
        replay: Replay | None = None,
    ):
        """Prepare the steps after the first `steps` ones.

        Args:
            dump_folder: for the last groups, if the run stops because of non-finite numbers.
            replay: groups of earlier steps, to learn from again.

        Raises:
            UserError: the teacher is to be imitated, but a score is not a likelihood.
        """
        if settings.loss.imitation_coef and model.config.scoring != "likelihood":
            raise UserError(
                f"prism.discriminator.imitation_coef={settings.loss.imitation_coef} needs a "
                f"discriminator with scoring=likelihood, but this one has {model.config.scoring}: "
                "set imitation_coef=0, or make one with "
                "prism.discriminator.upcycle.scoring=likelihood in stage warmup"
            )
        self._model = model
        self._encoder = GroupEncoder(model.config)
        self._settings = settings
        self._optimization = optimization
        self._ranks = ranks
        self._dump_folder = dump_folder
        self._steps = steps
        self._replay = replay or Replay(0.0, 0, "")
        self._consecutive_nonfinite = 0

    def __call__(self, groups: Sequence[Group], plan: RankPlan | None = None) -> StepResult:
        """Make one step.

        With one update per step, the scores come from the forward pass of the update. Groups of
        earlier steps, if there are any, count in the loss and the metrics, but are not returned.

        Args:
            groups: groups, or parts of groups, of this rank. There may be none.
            plan: the packs of this rank, from `plan.assign`; None: packs of `micro_batch_tokens`.

        Raises:
            FloatingPointError: on all ranks, after `max_nonfinite` consecutive non-finite steps.
        """
        self._steps += 1
        earlier = self._replay.draw(self._steps, len(groups))
        batch = self._mini_batch(groups, plan, [each.group for each in earlier])
        totals = Totals.of(batch, self._ranks)
        scores = None
        if self._settings.updates_per_step > 1:
            scores = score_groups(self._model, batch, self._ranks, totals)
        updates: list[_Update] = []
        for _ in range(self._settings.updates_per_step):
            updates.append(self._update(batch, totals))
            if updates[-1].nonfinite:
                break
        scores = (scores or updates[0].backward.scores).first(len(groups))
        metrics = _metrics(updates) | self._replay_metrics(earlier)
        result = StepResult(scores, metrics)
        self._stop_if_nonfinite(groups, result)
        if not result.nonfinite:
            self._replay.add(self._steps, groups)
        return result

    def _replay_metrics(self, earlier: Sequence[Remembered]) -> dict[str, float]:
        """Return the number of earlier groups over all ranks, and their mean age in steps."""
        if not self._replay.enabled:
            return {}
        ages = [float(self._steps - each.step) for each in earlier]
        count, total_age = self._ranks.sum([float(len(ages)), sum(ages)])
        return {"replay/groups": count, "replay/age": total_age / max(count, 1.0)}

    def score(self, groups: Sequence[Group]) -> GroupScores:
        """Score this rank's groups without learning from them. All ranks call it together."""
        return score_groups(self._model, self._mini_batch(groups), self._ranks)

    def _mini_batch(
        self,
        groups: Sequence[Group],
        plan: RankPlan | None = None,
        earlier: Sequence[Group] = (),
    ) -> MiniBatch:
        """Pack groups by the plan, and `earlier` ones in packs of their own."""
        max_tokens = self._settings.micro_batch_tokens
        if earlier:
            if plan is None:
                plan = self._encoder.plan(groups, max_tokens)
            plan += shifted(self._encoder.plan(earlier, max_tokens), len(groups))
        return MiniBatch(self._encoder, [*groups, *earlier], max_tokens, plan)

    def _update(self, batch: MiniBatch, totals: Totals) -> _Update:
        """Make one update, unless no rank has a valid pair or the accuracy is high enough."""
        backward = backward_groups(self._model, batch, self._settings.loss, self._ranks, totals)
        metrics, finite = self._reduce(batch, backward)
        if not finite or not totals.pairs or self._accurate_enough(metrics):
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

    def _reduce(self, batch: MiniBatch, backward: Backward) -> tuple[dict[str, float], bool]:
        """Return the metrics of all ranks, with one collective, and whether all is finite."""
        sums = pair_sums(backward.scores) | {"responses": float(batch.responses)}
        choices = backward.expert_choices
        nonfinite = float(not backward.finite)
        own = [*sums.values(), backward.loss, nonfinite, *choices.flatten().tolist()]
        total = self._ranks.sum(own)
        metrics = pair_metrics(dict(zip(sums, total, strict=False)))
        loss, num_nonfinite, *total_choices = total[len(sums) :]
        if num_nonfinite:
            return {name: metrics[name] for name in ("pairs", "valid_ratio")}, False
        load = _busiest_experts(torch.tensor(total_choices).reshape(choices.shape))
        return metrics | {"loss": loss} | load, True

    def _stop_if_nonfinite(self, groups: Sequence[Group], result: StepResult) -> None:
        if not result.nonfinite:
            self._consecutive_nonfinite = 0
            return
        self._consecutive_nonfinite += 1
        if self._consecutive_nonfinite < self._settings.max_nonfinite:
            return
        ranks = self._ranks
        file = self._dump_folder / f"nonfinite-{self._steps}-rank{ranks.rank}.pt"
        write_batch(file, groups, result.scores)
        ranks.wait()  # a rank that exits ends the others too
        raise FloatingPointError(
            "scores, loss or gradients of the discriminator were not finite in "
            f"{self._consecutive_nonfinite} steps in a row, and no parameter was changed by them. "
            f"The token ids and scores of the last step are in {file}. Lower "
            "prism.discriminator.lr, or start again from the warmed-up discriminator"
        )


def _metrics(updates: Sequence[_Update]) -> dict[str, float]:
    """Return the metrics of the first update, which gave the scores, and counts of all updates."""
    return updates[0].metrics | {
        "updates_skipped": float(sum(update.skipped for update in updates)),
        "nonfinite": float(any(update.nonfinite for update in updates)),
    }


def _busiest_experts(choices: Tensor) -> dict[str, float]:
    """Return the share of each set's choices that fell on its busiest expert, as mean over layers.

    Layers without tokens of a set are left out, and so is a set without any.

    Args:
        choices: [layers, sets, experts].
    """
    metrics = {}
    for name, set_choices in zip((*VIEWS, "prompt"), choices.unbind(1), strict=True):
        used = set_choices[set_choices.sum(-1) > 0]
        if len(used):
            metrics[f"busiest_expert/{name}"] = (used.amax(-1) / used.sum(-1)).mean().item()
    return metrics


def write_batch(file: Path, groups: Sequence[Group], scores: GroupScores) -> None:
    """Save groups and their scores, to be read with `torch.load`.

    Spans are saved as token ids. The discriminator's tokenizer decodes them.
    """
    content = {
        "groups": [to_plain(group) for group in groups],
        "teacher_scores": scores.teacher,
        "student_scores": scores.student,
        "valid": scores.valid,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)
