"""Stages 2 and 3: alignment and RL with verifiable rewards, both by verl's PPO trainer on Ray."""

from pathlib import Path

import ray
from omegaconf import DictConfig
from ray.exceptions import RayTaskError
from verl.trainer.main_ppo import run_ppo

from verl_prism import plugin
from verl_prism.checkpoints.export import publish_part
from verl_prism.checkpoints.store import last_checkpoint, last_step_saved
from verl_prism.config import Prism
from verl_prism.errors import UserError
from verl_prism.launcher.ray_actors import watched_actors
from verl_prism.report.metrics import METRICS
from verl_prism.report.summary import figures
from verl_prism.stages.task_runner import PrismTaskRunner
from verl_prism.trainer.validate import check_with_verl


def run_rl(config: DictConfig, prism: Prism) -> dict[str, float | str]:
    plugin.assert_loaded()
    check_with_verl(config)
    if not last_step_saved(prism):
        train(config, prism.output / METRICS)
    checkpoint, shown = last_checkpoint(prism), figures(prism)
    if prism.stage == "align":
        publish_part(prism, "discriminator", checkpoint / "discriminator", shown)
    publish_part(prism, "policy", checkpoint / "actor", shown)
    return shown


def train(config: DictConfig, metrics: Path) -> None:
    init = config.ray_kwargs.ray_init
    if init.address is not None:  # a Ray that is there has its size
        init.update(num_cpus=None, num_gpus=None)
    try:
        with watched_actors(metrics):
            run_ppo(config, task_runner_class=ray.remote(PrismTaskRunner))
    except RayTaskError as error:
        if isinstance(
            error.cause, UserError
        ):  # its own message, without the traceback that Ray puts in its place
            raise error.cause from None
        raise
    finally:
        ray.shutdown()
