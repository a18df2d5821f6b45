"""How many steps are an epoch: one pass over the training data."""

import math

from verl_prism.config import Prism

MANY_EPOCHS = 20
ROUNDING = 1e-9  # 3 * 0.1 steps are not more than 0.3


def steps_per_epoch(prism: Prism, rows: int) -> float:
    """Return the number of steps in which a training stage uses each of `rows` rows once.

    In stage warmup a row makes one pair from each rollout in the response format, and one from each
    of `prism.warmup.mismatched_teachers`. All rollouts are assumed to be in the format, and each
    row to have `prism.warmup.samples_per_prompt` of them; if there are fewer, an epoch has fewer
    steps.
    """
    match prism.stage:
        case "sft":
            return rows / prism.sft.examples_per_step
        case "dpo":
            return rows * prism.dpo.responses_per_prompt / prism.dpo.pairs_per_step
        case "warmup":
            warmup = prism.warmup
            training = min(rows, warmup.prompts) * (1 - warmup.heldout_fraction)
            pairs_per_row = warmup.samples_per_prompt + warmup.mismatched_teachers
            return training * pairs_per_row / warmup.pairs_per_step
    return rows / prism.rollout.prompts_per_step


def steps_of(prism: Prism, rows: int) -> int:
    """Return the number of steps of `prism.epochs`, rounded up."""
    assert prism.epochs is not None
    steps = prism.epochs * steps_per_epoch(prism, rows)
    return max(1, math.ceil(steps - ROUNDING))


def epochs_of(prism: Prism, rows: int) -> float:
    """Return the number of epochs in `prism.steps`."""
    return prism.steps / steps_per_epoch(prism, rows)
