"""verl's replay buffer with its constructor's options in the config."""

from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class ConfiguredReplayBuffer(ReplayBuffer):
    """Takes `trainer.v1.sampler.sampler_kwargs` as arguments of verl's own buffer.

    verl polls for finished rollouts every 2 s, which on a tiny policy is most of a step: `{poll_interval: 0.1}` waits
    less. verl does not pass the options of group filtering to a buffer chosen by config, so DAPO names them here too.
    """

    def __init__(self, *, sampler_kwargs: DictConfig, **kwargs: Any):
        options = {str(name): value for name, value in sampler_kwargs.items()}
        super().__init__(sampler_kwargs=sampler_kwargs, **kwargs, **options)
