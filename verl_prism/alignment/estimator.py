"""The advantage estimator that verl finds under `algorithm.adv_estimator=prism_alignment`."""

from typing import Any

from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

ESTIMATOR = "prism_alignment"


@register_adv_est(ESTIMATOR)
def pass_through(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    config: Any = None,
    index: Any = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Return the token-level rewards under the mask, as advantages and as returns.

    The trainer has already written each token's advantage in place of its reward. verl gives an
    estimator one number per response, but our normalization needs the scores of both views (see
    `advantage.py`).

    Args:
        token_level_rewards: [B, T], the advantage of each token.
        response_mask: [B, T].
    """
    advantages = token_level_rewards * response_mask
    return advantages, advantages
