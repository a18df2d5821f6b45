"""Direct preference optimization (DPO, arXiv 2305.18290) with verl's SFT trainer.

A pair is two examples, one after the other: the teacher's response, which is preferred, and the
policy's. The log-probabilities of the reference, which is the policy that the stage starts from,
are computed once, before the first step.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed import all_gather_object, broadcast_object_list
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, Subset
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode

from verl_prism.data.pair_dataset import PAIR, TIE
from verl_prism.data.rows import Rows, train_rows
from verl_prism.errors import EndedEarly
from verl_prism.report.metrics import MetricsLog
from verl_prism.report.step_samples import RESPONSE, ROW, STEP, evenly
from verl_prism.rollout.journal import Journal, read_journal
from verl_prism.trainer.dpo_reference import reference_journal
from verl_prism.trainer.sft import PrismSFTTrainer, StepClient

REFERENCE = "reference"  # of an example, its log-probability under the reference
METRICS = ("accuracy", "margin", "ties", "teacher_reward", "student_reward")
MARKS = ("margin", "teacher_reward", "student_reward")  # of a pair that is kept as a sample


def sequence_log_probs(log_probs: Tensor, loss_mask: Tensor) -> Tensor:
    """Return the log-probability [B] of each response.

    Both arguments are nested [B, tokens]. The log-probability at a token is that of the next one.
    """
    lengths = torch.tensor([len(mask) for mask in loss_mask.unbind()], device=loss_mask.device)
    counted = torch.roll(loss_mask.values(), shifts=-1, dims=0)
    sequences = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    sums = torch.zeros(len(lengths), device=lengths.device)
    return sums.index_add(0, sequences, log_probs.values().float() * counted)


def dpo_terms(
    log_probs: Tensor, reference: Tensor, ties: Tensor, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the losses [pairs], and values [pairs] of METRICS.

    The loss of a pair is -logsigmoid(β (log π(t) - log ref(t)) - β (log π(s) - log ref(s))), for
    the teacher's response t and the policy's response s.

    Args:
        log_probs: [2 · pairs] of the teacher's and the policy's responses by turns.
        reference: the same under the reference.
        ties: [pairs] 1 if both responses are the same, which counts as half accurate.
    """
    rewards = beta * (log_probs - reference)
    teacher = rewards[0::2]
    student = rewards[1::2]
    margin = teacher - student
    accuracy = torch.where(ties > 0, 0.5, (margin > 0).float())
    terms = (accuracy, margin, ties, teacher, student)
    values = dict(zip(METRICS, (term.detach() for term in terms), strict=True))
    return F.softplus(-margin), values


class DpoLoss:
    """The loss of micro-batches, as verl calls it. `marks` are those of each pair, by number."""

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self.marks: dict[int, dict[str, float]] = {}

    def __call__(
        self, model_output: Mapping[str, Tensor], data: TensorDict, dp_group: Any = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Return this micro-batch's share of the loss, and of each metric.

        The shares of all micro-batches and ranks add up to means over the pairs of the step.
        """
        log_probs = sequence_log_probs(model_output["log_probs"], data["loss_mask"])
        reference = data[REFERENCE].to(log_probs.device)
        ties = data[TIE].values()[0::2].to(log_probs.device)
        losses, values = dpo_terms(log_probs, reference, ties, self._beta)
        numbers = data[PAIR].values()[0::2].tolist()
        marks = torch.stack([values[name] for name in MARKS], dim=-1).tolist()
        for number, of_pair in zip(numbers, marks, strict=True):
            self.marks[number] = dict(zip(MARKS, of_pair, strict=True))
        pairs = data["global_batch_size"]
        metrics = {f"dpo/{name}": value.sum().item() / pairs for name, value in values.items()}
        return losses.sum() / pairs * data["dp_size"], metrics  # FSDP averages over the ranks


class PairCollator:
    """Joins pairs to a batch of examples, with verl's own collator."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def __call__(self, pairs: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """Return the batch as verl's collator makes it, with two examples for each pair."""
        return self._collate(list(chain.from_iterable(pairs)))


class PairClient(StepClient):
    """verl's training worker, which gets both examples of a pair in one micro-batch."""

    reference: Tensor  # [pairs, 2], set before the first step

    def train_batch(self, data: TensorDict) -> TensorDict:
        """Add the reference's log-probabilities, train, and sum the metrics."""
        pairs = data[PAIR].values()[0::2].cpu()
        data[REFERENCE] = self.reference[pairs].flatten()
        tu.assign_non_tensor(data, force_group_size=2)
        output = super().train_batch(data)
        metrics = tu.get(output, "metrics")
        for name in METRICS:
            shares = metrics[f"dpo/{name}"]
            metrics[f"dpo/{name}"] = float(torch.tensor(shares).sum())
        return output

    def log_probs(self, data: TensorDict) -> Tensor:
        """Return the log-probability [B] of each response."""
        tu.assign_non_tensor(data, force_group_size=2, compute_loss=False)
        output = self._worker.infer_batch(data)
        return sequence_log_probs(output["log_probs"], data["loss_mask"].cpu())


class PrismDPOTrainer(PrismSFTTrainer):
    """The trainer of stage dpo."""

    client_class = PairClient

    def _build_engine(self) -> None:
        super()._build_engine()
        self._loss = DpoLoss(self.prism.dpo.beta)
        self.training_client.set_loss_fn(self._loss)

    def _keep_samples(self, batch: TensorDict) -> None:
        """Keep pairs of this step, with their margins and rewards."""
        marks = dict(self._loss.marks)
        self._loss.marks.clear()
        if self.rank:
            return
        step = self._step + 1
        samples = []
        for pair in evenly(sorted(marks), self.prism.samples_per_step):
            row, response = divmod(pair, self.prism.dpo.responses_per_prompt)
            text = self._responses[row]["student_responses"][response]
            samples.append({STEP: step, ROW: row, RESPONSE: text, **marks[pair]})
        self.sample_tables.keep(samples, step)

    @cached_property
    def _responses(self) -> Rows:
        return train_rows(self.prism, ("student_responses",))

    def _build_dataloader(self) -> None:
        super()._build_dataloader()
        collate: Any = self.collate_fn
        self.collate_fn: Any = PairCollator(collate)
        self.train_dataloader.loader.collate_fn = self.collate_fn

    def _init_engine(self) -> None:
        """Load the model and, before a checkpoint replaces it, compute the reference."""
        super()._init_engine()
        self.training_client.reference = self._reference()

    def _reference(self) -> Tensor:
        """Return the log-probabilities [pairs, 2] of both responses, computed by all ranks.

        Those that are in the journal are kept.

        Raises:
            EndedEarly: an early end was requested; what was computed is kept.
        """
        journal = reference_journal(self.prism, resume=True) if self.rank == 0 else None
        pairs = len(self.train_dataset)
        missing = self._from_rank_0(journal.missing(pairs) if journal else None)
        if missing:
            self._compute_reference(missing, journal)
        reference = None
        if journal:
            reference = torch.zeros(pairs, 2)
            for record in read_journal(journal.file):
                reference[record["row"]] = torch.tensor(record["responses"])
        return self._from_rank_0(reference)

    def _compute_reference(self, pairs: Sequence[int], journal: Journal | None) -> None:
        """Write the log-probabilities of these pairs to the journal, which rank 0 has."""
        ranks = {
            "rank": self.engine.get_data_parallel_rank(),
            "num_replicas": self.engine.get_data_parallel_size(),
        }
        dataset = Subset(self.train_dataset, pairs)
        loader = DataLoader(
            dataset,
            batch_size=self.train_batch_size_per_dp,
            sampler=DistributedSampler(dataset, shuffle=False, **ranks),
            collate_fn=self.collate_fn,
            num_workers=self.config.data.num_workers,
        )
        for number, batch in enumerate(loader):
            self._note(f"computing the reference {100 * number // len(loader)} %")
            found = self._batch_reference(batch)
            gathered: list[Any] = [None] * ranks["num_replicas"]
            all_gather_object(gathered, found, group=self.engine.get_data_parallel_group())
            if journal:
                for of_rank in gathered:
                    journal.append(of_rank)
            if self._end_requested():
                raise EndedEarly(0)

    def _from_rank_0(self, value: Any) -> Any:
        """Return the value that rank 0 has."""
        values = [value]
        broadcast_object_list(values)
        return values[0]

    def _note(self, text: str) -> None:
        """Name the current phase on the console."""
        if self.rank == 0:
            with MetricsLog(self._checkpoints.run) as log:
                log.note(text)

    def _batch_reference(self, batch: dict[str, Any]) -> list[tuple[int, list[float]]]:
        """Return each pair of a batch: its number, and the log-probabilities of both responses."""
        settings = {
            "use_remove_padding": self.config.model.use_remove_padding,
            "use_dynamic_bsz": self.config.data.use_dynamic_bsz,
            "max_token_len_per_gpu": self.config.data.max_token_len_per_gpu,
            "temperature": 1.0,
            "pad_mode": DatasetPadMode.NO_PADDING,
            "pad_token_id": self.model_config.tokenizer.pad_token_id,
        }
        data = tu.get_tensordict(tensor_dict=batch, non_tensor_dict=settings)
        pairs = data[PAIR].values()[0::2].tolist()
        log_probs = self.training_client.log_probs(data).reshape(-1, 2).tolist()
        return list(zip(pairs, log_probs, strict=True))
