"""Stage 1: supervised fine-tuning, by verl's own trainer."""

import os
import tempfile
from pathlib import Path

from omegaconf import DictConfig

from verl_prism.config import Prism
from verl_prism.stages.figures import figures
from verl_prism.stages.publish import publish_policy


def run_sft(config: DictConfig, prism: Prism) -> dict[str, float | str]:
    """Trains in this process, one rank of a torchrun or the only one."""
    with tempfile.TemporaryDirectory() as folder:
        if "RANK" not in os.environ:
            os.environ |= alone(Path(folder))
        train(config)
    if os.environ["RANK"] != "0":
        return {}
    publish_policy(prism, part=".")
    return figures(prism)


def alone(folder: Path) -> dict[str, str]:
    """What torchrun tells the only rank, but for a store in a file: torch's own would listen to all the network."""
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return rank | {"DIST_INIT_METHOD": f"file://{folder}/store?rank=0&world_size=1"}


def train(config: DictConfig) -> None:
    from verl.trainer import sft_trainer

    from verl_prism import plugin

    plugin.assert_loaded()
    sft_trainer.run_sft(config)
