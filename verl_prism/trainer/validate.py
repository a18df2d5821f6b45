"""verl's own validation of a configuration, before Ray starts."""

from hydra.errors import InstantiationException
from omegaconf import DictConfig
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config

from verl_prism.errors import UserError


def check_with_verl(config: DictConfig) -> None:
    """Run verl's validation of the whole configuration.

    Raises:
        UserError: verl refuses it.
    """
    try:
        validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, ValueError, InstantiationException) as error:
        raise UserError(f"verl refuses this configuration: {error.__cause__ or error}") from error
