"""verl's SFT trainer with atomic checkpoints, early ends on request, and samples."""

import contextlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from torch.distributed import ReduceOp
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.trainer.sft_trainer import SFTTrainer
from verl.utils.checkpoint import CheckpointHandler
from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group

from verl_prism.checkpoints.fingerprint import checkpoint_store
from verl_prism.checkpoints.preemption import end_requested
from verl_prism.checkpoints.store import CheckpointStore
from verl_prism.config import parse_prism
from verl_prism.data.rows import train_rows
from verl_prism.errors import EndedEarly
from verl_prism.report.step_samples import RESPONSE, ROW, STEP, add_samples, evenly
from verl_prism.trainer.sample_tables import SampleTables


def train(trainer: "type[PrismSFTTrainer]", config: DictConfig) -> None:
    """Train up to the last step, or until an early end is requested. Both save a checkpoint."""
    initialize_global_process_group()
    with contextlib.suppress(EndedEarly):
        trainer(config).fit()
    destroy_global_process_group()


class PublishingHandler(CheckpointHandler):
    """Publishes the checkpoints that verl's handler writes."""

    def __init__(self, checkpoints: CheckpointStore, **options: Any) -> None:
        super().__init__(**options)
        self._checkpoints = checkpoints
        self.saved_step: int | None = None

    def save_checkpoint(self, step: int) -> None:
        """Save and publish the checkpoint of a step."""
        super().save_checkpoint(step)
        if self.rank == 0:
            self._checkpoints.publish(step)
        torch.distributed.barrier()
        self.saved_step = step

    def _load_dataloader_state(self, checkpoint_path: str) -> None:
        """Restore the position in the data, except at the end of an epoch.

        There verl's data loader would skip the next epoch.
        """
        if self.resume_global_step % len(self.train_dataloader):
            super()._load_dataloader_state(checkpoint_path)


class StepLoader:
    """A data loader that calls `after_step` after each training step.

    `SFTTrainer.fit` takes a batch, makes a step and saves. When it asks for the next batch, all of
    that is done.
    """

    def __init__(self, loader: StatefulDataLoader, after_step: Callable[[], None]) -> None:
        self.loader = loader
        self._after_step = after_step

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch
            self._after_step()


class StepClient:
    """verl's training worker, which calls `after_batch` after each training step."""

    def __init__(self, worker: Any, after_batch: Callable[[TensorDict], None]) -> None:
        self._worker = worker
        self._after_batch = after_batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def train_batch(self, data: TensorDict) -> TensorDict:
        """Make a training step."""
        output: TensorDict = self._worker.train_batch(data)
        self._after_batch(data)
        return output


class PrismSFTTrainer(SFTTrainer):
    """The trainer of stage sft."""

    client_class: type[StepClient] = StepClient

    def __init__(self, config: DictConfig) -> None:
        self.prism = parse_prism(config.prism)
        self._checkpoints = checkpoint_store(self.prism)
        self.sample_tables = SampleTables(self.prism)
        super().__init__(config)
        self._step = self.resume_global_step

    def _build_engine(self) -> None:
        super()._build_engine()
        worker: Any = self.training_client
        self.training_client: Any = self.client_class(worker, self._keep_samples)

    def _keep_samples(self, batch: TensorDict) -> None:
        """Keep demonstrations of the first step. Those of later steps would show no more."""
        if self.rank or self._step:
            return
        rows = train_rows(self.prism, ("messages",))
        numbers = list(islice(self.train_sampler, self.train_batch_size_per_dp))
        samples = []
        for number in evenly(numbers, self.prism.samples_per_step):
            text = rows[number]["messages"][-1]["content"]
            samples.append({STEP: 1, ROW: number, RESPONSE: text})
        add_samples(self._checkpoints.run, samples)
        self.sample_tables.send(samples, 1)

    def _build_dataloader(self) -> None:
        super()._build_dataloader()
        self.train_sampler.seed = self.config.prism.seed  # verl's sampler always has seed 0
        loader: StatefulDataLoader = self.train_dataloader
        self.train_dataloader: StepLoader = StepLoader(loader, self._after_step)

    def _build_ckpt_handler(self) -> None:
        trainer = self.config.trainer
        self.ckpt_handler = PublishingHandler(
            self._checkpoints,
            engine=self.engine,
            train_dataloader=self.train_dataloader.loader,
            default_local_dir=trainer.default_local_dir,
            max_ckpt_to_keep=trainer.max_ckpt_to_keep,
            resume_mode=trainer.resume_mode,
            resume_from_path=trainer.resume_from_path,
            lora_train_meta=self._get_lora_train_meta(),
        )

    def _after_step(self) -> None:
        """Save and raise EndedEarly if an early end was requested."""
        self._step += 1
        if self._end_requested():
            if self.ckpt_handler.saved_step != self._step:
                self.ckpt_handler.save_checkpoint(self._step)
            raise EndedEarly(self._step)

    def _end_requested(self) -> bool:
        """Return the same answer on all ranks, which may see the request at different times."""
        requested = torch.tensor(
            end_requested(self._checkpoints.run),
            dtype=torch.int32,
            device=self.config.trainer.device,
        )
        torch.distributed.all_reduce(requested, op=ReduceOp.MAX)
        return bool(requested.item())
