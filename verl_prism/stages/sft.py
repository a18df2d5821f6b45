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
        # in a file of the launcher's scratch folder: torch's own store would listen to the whole network
        os.environ |= store | {"DIST_INIT_METHOD": f"file://{os.environ['RAY_TMPDIR']}/store?rank=0&world_size=1"}
    from verl.trainer import sft_trainer

    from verl_prism import plugin

    plugin.assert_loaded()
    sft_trainer.run_sft(config)
    if os.environ["RANK"] != "0":
        return {}
    publish_policy(prism, part=".")
    return figures(prism)
