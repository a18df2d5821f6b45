import pytest
from omegaconf import OmegaConf

from verl_prism.cpu.replay_buffer import ConfiguredReplayBuffer


def make_buffer(**sampler_kwargs):
    return ConfiguredReplayBuffer(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create(sampler_kwargs),
        refill_fn=lambda count: None,
    )


def test_options_come_from_the_config():
    options = dict(poll_interval=0.1, filter_groups_metric="acc", train_batch_size=4, gen_batch_size=1)
    buffer = make_buffer(**options)
    assert {name: getattr(buffer, name) for name in options} == options


def test_without_options_it_is_verls_buffer():
    assert make_buffer().poll_interval == 2.0


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="pol_interval"):
        make_buffer(pol_interval=0.1)
