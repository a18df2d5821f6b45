"""The advantage estimator that verl finds under `algorithm.adv_estimator=prism_alignment`."""

from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

ESTIMATOR = "prism_alignment"


@register_adv_est(ESTIMATOR)
def pass_through(
    token_level_rewards: Tensor, response_mask: Tensor, config=None, index=None, **_
) -> tuple[Tensor, Tensor]:
    """Take as advantages what the trainer has put in the place of the rewards.

    Args:
        token_level_rewards: [B, T], the advantage of each token.
        response_mask: [B, T].

    Normalisation stands in `advantage.py`: verl hands an estimator one number per response, and here two views are
    normalised each by itself.
    """
    advantages = token_level_rewards * response_mask
    return advantages, advantages
