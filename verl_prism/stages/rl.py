"""Stages 2 and 3: alignment and RL with verifiable rewards, both by verl's PPO trainer on Ray."""

import ray
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from ray.exceptions import RayTaskError
from verl.trainer.main_ppo import run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config

from verl_prism import plugin
from verl_prism.config import Prism
from verl_prism.errors import UserError
from verl_prism.report.metrics import METRICS
from verl_prism.stages.actors import watched_actors
from verl_prism.stages.figures import figures
from verl_prism.stages.publish import publish_policy
from verl_prism.task_runner import PrismTaskRunner


def run_rl(config: DictConfig, prism: Prism) -> dict[str, float | str]:
    plugin.assert_loaded()
    check_with_verl(config)
    try:
        with watched_actors(prism.output / METRICS):
            run_ppo(config, task_runner_class=ray.remote(PrismTaskRunner))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):  # its own message, without the traceback that Ray puts in its place
            raise error.cause from None
        raise
    finally:
        ray.shutdown()
    publish_policy(prism, part="actor")
    return figures(prism)


def check_with_verl(config: DictConfig) -> None:
    """verl's own validation, before Ray starts. Raises UserError."""
    try:
        validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError, InstantiationException) as error:
        raise UserError(f"verl refuses this configuration: {error.__cause__ or error}") from error
