"""The advantage estimator that verl finds under `algorithm.adv_estimator=prism_alignment`."""

from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

ESTIMATOR = "prism_alignment"


@register_adv_est(ESTIMATOR)
def spread_over_response(
    token_level_rewards: Tensor, response_mask: Tensor, config=None, index=None, **_
) -> tuple[Tensor, Tensor]:
    """Give every response token its response's advantage, which the trainer has put on the last token.

    Args:
        token_level_rewards: [B, T], the group-normalised advantage at one token and 0 elsewhere.
        response_mask: [B, T].

    Normalisation stands in `advantage.py`: verl hands an estimator one number per response, and here two views are
    normalised each by itself.
    """
    advantages = token_level_rewards.sum(-1, keepdim=True) * response_mask
    return advantages, advantages
