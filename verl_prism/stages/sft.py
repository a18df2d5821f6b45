"""Stage 1: supervised fine-tuning, by verl's own trainer."""

import os

from omegaconf import DictConfig

from verl_prism.checkpoints.export import publish_part
from verl_prism.checkpoints.store import last_checkpoint, last_step_saved
from verl_prism.config import Prism
from verl_prism.report.summary import figures


def run_sft(config: DictConfig, prism: Prism) -> dict[str, float | str]:
    """Trains in this process, one rank of a torchrun or the only one. Raises EndedEarly."""
    if "RANK" not in os.environ:
        store = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
        }
        # in a file of the launcher's scratch folder: torch's own store would listen to the whole network
        os.environ |= store | {
            "DIST_INIT_METHOD": f"file://{os.environ['RAY_TMPDIR']}/store?rank=0&world_size=1"
        }
    from verl_prism import plugin
    from verl_prism.trainer.sft import train

    plugin.assert_loaded()
    if prism.sft.freeze_vision:
        from verl_prism.trainer.frozen_vision import VENDOR

        os.environ["VERL_ENGINE_VENDOR"] = VENDOR
    if not last_step_saved(prism):
        train(config)
    if os.environ["RANK"] != "0":
        return {}
    checkpoint, shown = last_checkpoint(prism), figures(prism)
    publish_part(prism, "policy", checkpoint, shown)
    return shown
