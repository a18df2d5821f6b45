"""The on-policy shortcut: equal to verl's own losses, and off if a PPO ratio can differ from 1."""

import pytest
import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass

from verl_prism.compose import compose_run
from verl_prism.trainer.on_policy import LOSSES, PREFIX, ratio_setting, take_shortcut

AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")


def compose(*overrides: str):
    return compose_run(["stage=rlvr", *overrides])[0]


def loss_and_gradient(loss_mode, aggregation, old_log_prob, log_prob, advantages, mask):
    actor = omega_conf_to_dataclass(compose().actor_rollout_ref.actor)
    log_prob = log_prob.clone().requires_grad_()
    loss, metrics = get_policy_loss_fn(loss_mode)(
        old_log_prob=old_log_prob,
        log_prob=log_prob,
        advantages=advantages,
        response_mask=mask,
        loss_agg_mode=aggregation,
        config=actor,
    )
    loss.backward()
    return loss, log_prob.grad, metrics


@pytest.fixture
def batch():
    torch.manual_seed(0)
    log_prob = -torch.rand(6, 9) * 5
    advantages = torch.randn(6, 9)
    mask = (torch.arange(9) < torch.randint(1, 10, (6, 1))).float()
    return log_prob, advantages, mask


@pytest.mark.parametrize("loss_mode", LOSSES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_loss_and_gradient_are_verls_own(batch, loss_mode, aggregation):
    log_prob, advantages, mask = batch
    expected, expected_gradient, _ = loss_and_gradient(
        loss_mode, aggregation, log_prob, log_prob, advantages, mask
    )
    vllms = log_prob + 0.1
    loss, gradient, _ = loss_and_gradient(
        PREFIX + loss_mode, aggregation, vllms, log_prob, advantages, mask
    )
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=0)


def test_metrics_are_means_over_the_sampled_tokens():
    log_prob = torch.tensor([[0.5, 0.25], [0.5, 0.1]]).log()
    vllms = torch.tensor([[0.5, 0.5], [0.5, 0.9]]).log()
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    _, _, metrics = loss_and_gradient(
        "on_policy_vanilla", "token-mean", vllms, log_prob, torch.ones(2, 2), mask
    )
    nats = torch.tensor(2.0).log().item()
    assert metrics == pytest.approx(
        {
            "actor/sampled_entropy": (nats + 2 * nats + nats) / 3,
            "actor/rollout_kl": nats / 3,
            "actor/rollout_probs_diff": 0.25 / 3,
        }
    )


@pytest.mark.parametrize("algorithm", ["grpo", "dapo", "gspo"])
def test_one_update_per_batch_takes_the_shortcut(algorithm):
    config = compose(f"algorithm={algorithm}")
    one_update = config.actor_rollout_ref.actor.ppo_mini_batch_size >= config.data.train_batch_size
    assert (ratio_setting(config) is None) == one_update


def test_align_takes_the_shortcut():
    config = compose_run(["stage=align"])[0]
    assert ratio_setting(config) is None
    take_shortcut(config)
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "on_policy_vanilla"


@pytest.mark.parametrize(
    "override",
    [
        "prism.rollout.old_log_probs=always",
        "actor_rollout_ref.actor.ppo_epochs=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.rollout.calculate_log_probs=false",
        "algorithm.use_kl_in_reward=true",
        "algorithm.rollout_correction.rollout_is=token",
        "algorithm.rollout_correction.bypass_mode=true",
    ],
)
def test_a_setting_by_which_ratios_matter_turns_it_off(override):
    setting = ratio_setting(compose(override))
    assert setting is not None
    assert override.startswith(setting)


def test_white_box_distillation_turns_it_off(tmp_path):
    teacher = f"prism.algorithm.distillation.teacher={tmp_path}"
    config = compose("algorithm=opd_whitebox", teacher, "prism.hardware.ray_gpus=2")
    assert ratio_setting(config) == "distillation.enabled"
