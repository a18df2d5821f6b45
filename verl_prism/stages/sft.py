"""Stages `sft` and `dpo`: training on fixed responses with verl's SFT trainer."""

import multiprocessing
import os

from omegaconf import DictConfig
from torch.distributed.elastic.multiprocessing.errors import record

from verl_prism import plugin
from verl_prism.checkpoints.export import export_part
from verl_prism.checkpoints.fingerprint import checkpoint_store
from verl_prism.checkpoints.model_card import ModelCard
from verl_prism.config import Prism
from verl_prism.launcher.ranks import on_all_devices
from verl_prism.report.summary import shown_metrics, summary_metrics
from verl_prism.trainer.dpo_reference import reference_journal


def run_sft(config: DictConfig, prism: Prism) -> dict[str, float | str]:
    """Train on all devices, and export the policy.

    Returns the metrics for the summary.

    Raises:
        UserError: the reference of stage dpo that is there was computed with other settings.
        EndedEarly: an early end was requested, and the last step is saved.
    """
    plugin.assert_loaded()
    checkpoints = checkpoint_store(prism)
    if not (prism.resume and checkpoints.reached(prism.steps)):
        if prism.stage == "dpo":
            reference_journal(prism, prism.resume)
        on_all_devices(prism.hardware, train_rank, config, prism)
    trained = checkpoints.last(prism.steps)
    shown = shown_metrics(prism.stage, prism.algorithm.dynamic_sampling)
    metrics = summary_metrics(checkpoints.run, shown)
    card = ModelCard.of(prism, "policy", prism.policy, metrics)
    export_part(trained, prism.policy, checkpoints.run.policy, card, prism.lora)
    return metrics


@record
def train_rank(config: DictConfig, prism: Prism) -> None:
    """Train in this process, which is one rank."""
    if "RANK" not in os.environ:
        os.environ |= _single_rank()
    # A rank that torch has spawned would spawn the data loader's workers too, but verl's processor
    # cannot be pickled.
    multiprocessing.set_start_method("fork", force=True)
    if prism.stage == "sft" and prism.sft.freeze_vision:
        from verl_prism.trainer.frozen_vision import VENDOR

        os.environ["VERL_ENGINE_VENDOR"] = VENDOR
    # verl reads the variables when it is imported
    if prism.stage == "dpo":
        from verl_prism.trainer.dpo import PrismDPOTrainer as Trainer
    else:
        from verl_prism.trainer.sft import PrismSFTTrainer as Trainer
    from verl_prism.trainer.sft import train

    train(Trainer, config)


def _single_rank() -> dict[str, str]:
    """Return the variables that torchrun would set for the only rank.

    Ranks meet in a file: torch's own store would listen on every network interface.
    """
    store = f"{os.environ['RAY_TMPDIR']}/store"
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "DIST_INIT_METHOD": f"file://{store}?rank=0&world_size=1",
    }
