"""The on-policy shortcut: no pass over the rollouts for their old log-probabilities.

With one update per batch of rollouts, the policy that is updated is the policy that answered. Each
PPO ratio is then 1, and its gradient is that of exp(log_prob - log_prob.detach()). So verl's
policy losses are registered a second time, with `log_prob.detach()` as the old log-probabilities.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from omegaconf import DictConfig
from torch import Tensor
from verl.trainer.ppo.core_algos import get_policy_loss_fn, register_policy_loss
from verl.utils.torch_functional import masked_mean

PREFIX = "on_policy_"
LOSSES = ("vanilla", "gspo")
PolicyLoss = Callable[..., tuple[Tensor, dict[str, Any]]]


def on_policy_loss(
    policy_loss: PolicyLoss,
    *,
    old_log_prob: Tensor,
    log_prob: Tensor,
    response_mask: Tensor,
    **others: Any,
) -> tuple[Tensor, dict[str, Any]]:
    """Return verl's `policy_loss` at ratio 1, and metrics.

    verl's own metrics (KL divergence and clipped share) are left out, because they are always 0.

    Args:
        old_log_prob: [B, T], of vLLM. Only compared with the actor's.
        log_prob: [B, T], of the actor.
        response_mask: [B, T].
        others: passed on.
    """
    loss, _ = policy_loss(
        old_log_prob=log_prob.detach(), log_prob=log_prob, response_mask=response_mask, **others
    )
    return loss, token_metrics(old_log_prob, log_prob.detach(), response_mask)


def token_metrics(rollout: Tensor, actor: Tensor, response_mask: Tensor) -> dict[str, float]:
    """Return means over the sampled tokens, of log-probabilities[B, T] by vLLM and by the actor.

    sampled_entropy: an estimate of the policy's entropy per token, in nats.
    rollout_kl: an estimate of the KL divergence of vLLM's policy from the actor's, per token.
    rollout_probs_diff: the absolute difference of the probabilities.
    """
    difference = (rollout.exp() - actor.exp()).abs()
    return {
        "actor/sampled_entropy": masked_mean(-actor, response_mask).item(),
        "actor/rollout_kl": masked_mean(rollout - actor, response_mask).item(),
        "actor/rollout_probs_diff": masked_mean(difference, response_mask).item(),
    }


for name in LOSSES:
    register_policy_loss(PREFIX + name)(partial(on_policy_loss, get_policy_loss_fn(name)))


def ratio_setting(config: DictConfig) -> str | None:
    """Return the setting by which PPO ratios matter, or None if the shortcut is exact."""
    actor = config.actor_rollout_ref.actor
    correction = config.algorithm.rollout_correction
    matters = {
        "prism.rollout.old_log_probs": config.prism.rollout.old_log_probs == "always",
        "actor_rollout_ref.actor.ppo_epochs": actor.ppo_epochs > 1,
        "actor_rollout_ref.actor.ppo_mini_batch_size": (
            actor.ppo_mini_batch_size < config.data.train_batch_size
        ),
        "actor_rollout_ref.actor.policy_loss.loss_mode": actor.policy_loss.loss_mode not in LOSSES,
        "actor_rollout_ref.rollout.calculate_log_probs": (
            not config.actor_rollout_ref.rollout.calculate_log_probs
        ),
        "algorithm.use_kl_in_reward": config.algorithm.use_kl_in_reward,
        "algorithm.rollout_correction": (
            correction is not None
            and (correction.bypass_mode or correction.rollout_is or correction.rollout_rs)
        ),
        "distillation.enabled": config.distillation.enabled,
    }
    return next((key for key, applies in matters.items() if applies), None)


def take_shortcut(config: DictConfig) -> None:
    """Choose the loss at ratio 1.

    verl's rollout correction, which then only measures, would compare vLLM with itself.
    """
    policy_loss = config.actor_rollout_ref.actor.policy_loss
    policy_loss.loss_mode = PREFIX + policy_loss.loss_mode
    config.algorithm.rollout_correction = None
