"""Stage sft: the order of the demonstrations depends on the seed."""

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from torch.utils.data import DistributedSampler
from verl.trainer.sft_trainer import SFTTrainer

from verl_prism.trainer.sft import PrismSFTTrainer


@pytest.fixture
def order(monkeypatch):
    """Return a function that gives the order in which a run reads eight demonstrations."""

    def build(trainer) -> None:
        trainer.train_sampler = DistributedSampler(range(8), num_replicas=1, rank=0)
        trainer.train_dataloader = SimpleNamespace()

    monkeypatch.setattr(SFTTrainer, "_build_dataloader", build)

    def first_epoch(seed: int) -> list[int]:
        trainer = PrismSFTTrainer.__new__(PrismSFTTrainer)
        trainer.config = OmegaConf.create({"prism": {"seed": seed}})
        trainer._build_dataloader()
        return list(trainer.train_sampler)

    return first_epoch


def test_the_order_depends_on_the_seed_only(order):
    assert order(0) == list(DistributedSampler(range(8), num_replicas=1, rank=0))
    assert order(1) == order(1)
    assert order(1) != order(0)
