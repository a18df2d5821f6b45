"""Stage 1: supervised fine-tuning, by verl's own trainer."""

import os

from omegaconf import DictConfig

from verl_prism.config import Prism
from verl_prism.stages.figures import figures
from verl_prism.stages.publish import publish_policy


def run_sft(config: DictConfig, prism: Prism) -> dict[str, float | str]:
    """Trains in this process, one rank of a torchrun or the only one."""
    if "RANK" not in os.environ:
        store = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        os.environ |= store
    from verl.trainer import sft_trainer

    from verl_prism import plugin

    plugin.assert_loaded()
    if prism.sft.freeze_vision:
        from verl_prism.stages.frozen_vision import VENDOR

        os.environ["VERL_ENGINE_VENDOR"] = VENDOR
    sft_trainer.run_sft(config)
    if os.environ["RANK"] != "0":
        return {}
    publish_policy(prism, part=".")
    return figures(prism)
