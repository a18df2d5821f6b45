"""Stages 2 and 3: alignment, and RL with verifiable rewards, with verl's PPO trainer on Ray."""

from pathlib import Path

import ray
from omegaconf import DictConfig
from ray.exceptions import RayTaskError
from verl.trainer.main_ppo import run_ppo

from verl_prism import plugin
from verl_prism.checkpoints.export import export_part
from verl_prism.checkpoints.fingerprint import checkpoint_store
from verl_prism.checkpoints.model_card import ModelCard
from verl_prism.config import Prism
from verl_prism.errors import UserError
from verl_prism.launcher.ray_actors import watched_actors
from verl_prism.report.summary import shown_metrics, summary_metrics
from verl_prism.stages.task_runner import PrismTaskRunner
from verl_prism.trainer.validate import check_with_verl


def run_rl(config: DictConfig, prism: Prism) -> dict[str, float | str]:
    """Train, and export the policy and, after alignment, the discriminator.

    Returns the metrics for the summary. Raises EndedEarly.
    """
    plugin.assert_loaded()
    check_with_verl(config)
    checkpoints = checkpoint_store(prism)
    run = checkpoints.run
    if not (prism.resume and checkpoints.reached(prism.steps)):
        train(config, run.metrics)
    trained = checkpoints.last(prism.steps)
    shown = shown_metrics(prism.stage, prism.algorithm.dynamic_sampling)
    metrics = summary_metrics(run, shown)
    if prism.stage == "align":
        base = prism.discriminator.path
        card = ModelCard.of(prism, "discriminator", base, metrics)
        export_part(trained / "discriminator", base, run.discriminator, card)
    card = ModelCard.of(prism, "policy", prism.policy, metrics)
    export_part(trained / "actor", prism.policy, run.policy, card, prism.lora)
    return metrics


def train(config: DictConfig, metrics: Path) -> None:
    """Run verl's PPO trainer until it ends, and stop Ray.

    metrics: the file to which verl logs its steps.
    """
    init = config.ray_kwargs.ray_init
    if init.address is not None:  # an existing Ray cluster knows its resources
        init.update(num_cpus=None, num_gpus=None)
    try:
        with watched_actors(metrics):
            run_ppo(config, task_runner_class=ray.remote(PrismTaskRunner))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):  # Ray's own message is a traceback
            raise error.cause from None
        raise
    finally:
        ray.shutdown()
