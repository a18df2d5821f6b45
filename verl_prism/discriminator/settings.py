"""Settings of the discriminator's step, named as in the config section `prism.discriminator`.

The section's comments in `trainer_configs/prism.yaml` explain each setting.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class LossSettings:
    """The terms of the loss besides the plain pairs. The last four are off by default.

    score_regularization: weight of the mean squared score.
    balance_coef: weight of the load-balancing loss of the experts.
    label_smoothing: share, in [0, 0.5), of each pair that is counted with the opposite label.
    margin: lead of the teacher's score at which a pair costs log 2.
    gradient_penalty: weight of `loss.gradient_penalty`.
    imitation_coef: weight of minus the teacher's score, which must be a likelihood.
    """

    score_regularization: float = 0.001
    balance_coef: float = 0.01
    label_smoothing: float = 0.0
    margin: float = 0.0
    gradient_penalty: float = 0.0
    imitation_coef: float = 0.0


@dataclass(frozen=True)
class StepSettings:
    """Settings of one step.

    micro_batch_tokens: size of one forward-backward pass, as `costs.GroupSizes.size` counts it; a
        larger group is split.
    updates_per_step: if more than 1, the groups are scored before the first update.
    replay_share: share of the groups of an update that are from earlier steps, see `replay.Replay`.
    replay_groups: number of groups that each rank remembers for it.
    skip_above_accuracy: no update if more of the pairs are told apart; None always updates.
    max_nonfinite: consecutive steps with non-finite numbers after which the run stops.
    """

    micro_batch_tokens: int = 114_688
    loss: LossSettings = field(default_factory=LossSettings)
    updates_per_step: int = 1
    replay_share: float = 0.0
    replay_groups: int = 64
    skip_above_accuracy: float | None = None
    max_nonfinite: int = 3

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> "StepSettings":
        """Take the known fields of a flat mapping, such as the dump of `prism.discriminator`."""
        return cls(loss=LossSettings(**_known(LossSettings, settings)), **_known(cls, settings))


def _known(settings_class: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(settings_class)}
    return {name: value for name, value in settings.items() if name in names}
