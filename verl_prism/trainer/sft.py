"""verl's SFT trainer, with checkpoints that are whole or not there, and an end that somebody asked for."""

import torch
from omegaconf import DictConfig
from verl.trainer.sft_trainer import SFTTrainer
from verl.utils.checkpoint import CheckpointHandler
from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group

from verl_prism.checkpoints.preemption import end_requested
from verl_prism.checkpoints.store import publish
from verl_prism.config import Prism, parse_prism


def train(config: DictConfig) -> None:
    initialize_global_process_group()
    PrismSFTTrainer(config).fit()
    destroy_global_process_group()


class PublishingHandler(CheckpointHandler):
    """Publishes what verl's has written aside."""

    def __init__(self, prism: Prism, **options):
        super().__init__(**options)
        self._prism = prism

    def save_checkpoint(self, step: int) -> None:
        super().save_checkpoint(step)
        if self.rank == 0:
            publish(self._prism, step)
        torch.distributed.barrier()

    def _load_dataloader_state(self, checkpoint_path: str) -> None:
        """verl's, but not at an epoch's end: there it would take the next epoch, too, for read."""
        if self.resume_global_step % len(self.train_dataloader):
            super()._load_dataloader_state(checkpoint_path)


class PrismSFTTrainer(SFTTrainer):
    def __init__(self, config: DictConfig):
        self._prism = parse_prism(config.prism)
        super().__init__(config)

    def _build_ckpt_handler(self) -> None:
        trainer = self.config.trainer
        self.ckpt_handler = PublishingHandler(
            self._prism,
            engine=self.engine,
            train_dataloader=self.train_dataloader,
            default_local_dir=trainer.default_local_dir,
            max_ckpt_to_keep=trainer.max_ckpt_to_keep,
            resume_mode=trainer.resume_mode,
            resume_from_path=trainer.resume_from_path,
            lora_train_meta=self._get_lora_train_meta(),
        )

    def _get_batch_seqlens(self, data) -> list[int]:
        """Where an end was asked for, the step that verl begins here is its last: it saves and returns."""
        asked = torch.tensor(end_requested(self._prism), dtype=torch.int32, device=self.device_name)
        torch.distributed.all_reduce(
            asked, op=torch.distributed.ReduceOp.MAX
        )  # not seen by all at the same time
        if asked.item():
            self.total_training_steps = 0
        return super()._get_batch_seqlens(data)
