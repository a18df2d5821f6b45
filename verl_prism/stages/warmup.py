"""Warm-up: before the game the discriminator learns, offline, to tell the teacher's texts from the policy's.

The policy answers training prompts; each valid answer is paired with the teacher's. Held-out prompts show whether the
discriminator learnt what distinguishes the two or the pairs by heart.
"""

import json
import math
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow.parquet as pq
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.tensor import DTensor
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    ProcessorMixin,
    get_cosine_schedule_with_warmup,
)

from verl_prism.checkpoints.model_card import write_card
from verl_prism.checkpoints.preemption import end_requested
from verl_prism.checkpoints.resume import rollouts_file, upcycled_folder
from verl_prism.checkpoints.store import Checkpoint, checkpoints_folder, newest_checkpoint
from verl_prism.config import Prism
from verl_prism.data.messages import chat_messages, row_images
from verl_prism.discriminator.batch import Group, Prompt, valid_pairs
from verl_prism.discriminator.loss import pair_metrics, pair_sums
from verl_prism.discriminator.model import (
    PrismDiscriminatorForTokenClassification,
    load_discriminator,
)
from verl_prism.discriminator.pairs import WarmupGroups, add_swapped_teachers, warmup_groups
from verl_prism.discriminator.prompts import encode_prompt
from verl_prism.discriminator.ranks import Ranks, Runtime, on_ranks, process_group, shard
from verl_prism.discriminator.settings import StepSettings
from verl_prism.discriminator.spans import view_limits
from verl_prism.discriminator.step import DiscriminatorStep, Optimization
from verl_prism.discriminator.upcycling import upcycle
from verl_prism.errors import EndedEarly, UserError
from verl_prism.files import atomic_folder
from verl_prism.report.metrics import MetricsLog
from verl_prism.response import View
from verl_prism.stages.warmup_state import TrainingState

LR_WARMUP_SHARE = 0.1


def run_warmup(prism: Prism) -> dict[str, float | str]:
    """The stage `warmup`: sample the policy, pair, train, and say how well unseen pairs are told apart.

    Writes `<output>/discriminator`. With `prism.resume` it goes on from the checkpoint of an unfinished run, if any.

    Raises:
        UserError: there are no pairs to train on.
        EndedEarly: it was asked to end, and has saved the step that it was at.
    """
    if prism.hardware.nodes > 1:
        raise UserError(
            f"prism.hardware.nodes={prism.hardware.nodes}: the warm-up runs on the devices of one node"
        )
    checkpoint = newest_checkpoint(prism)[0] if prism.resume else None
    if checkpoint is None:
        with MetricsLog(prism.output) as log:
            sample_policy(prism, log)
            make_discriminator(prism, log)
    reached = on_ranks(prism.hardware.devices_per_node, train_discriminator, prism, checkpoint)
    assert reached is not None
    figures, step = reached
    if step < prism.steps:
        raise EndedEarly(step)
    return figures


def sample_policy(prism: Prism, log: MetricsLog) -> None:
    """The policy's answers to the first `warmup.prompts` rows of the training data, to `<output>/rollouts.jsonl`."""
    from verl_prism.rollout.sampler import PolicySampler

    log.note("starting vLLM")
    with PolicySampler(prism.policy, prism.hardware, prism.seed) as sampler:
        responses = sampler.sample(
            _rows(prism),
            samples=prism.warmup.samples_per_prompt,
            temperature=prism.rollout.temperature,
            top_p=prism.rollout.top_p,
            max_tokens=prism.data.max_response_tokens,
            on_progress=lambda done, total: log.note(f"sampling the policy {done}/{total}"),
        )
    lines = [
        json.dumps([response.text for response in group], ensure_ascii=False) + "\n"
        for group in responses
    ]
    rollouts_file(prism).write_text("".join(lines), encoding="utf-8")


def make_discriminator(prism: Prism, log: MetricsLog) -> None:
    """The discriminator that training starts from, in `<output>/upcycled`."""
    settings = prism.discriminator.upcycle
    upcycle(
        settings.base,
        upcycled_folder(prism),
        experts=settings.experts,
        experts_per_token=settings.experts_per_token,
        routing=settings.routing,
        noise=settings.noise,
        seed=prism.seed,
        on_progress=lambda done, total: log.note(f"upcycling {100 * done // max(total, 1)} %"),
    )


@record
def train_discriminator(
    prism: Prism, checkpoint: Checkpoint | None
) -> tuple[dict[str, float | str], int]:
    """On each rank: train up to `prism.steps` steps, save, and measure on the held-out pairs.

    Returns the figures, none where it was asked to end, and the step that was reached.

    Raises:
        UserError: there are no pairs to train on.
        FloatingPointError: numbers were not finite for too long; nothing is saved.
    """
    torch.use_deterministic_algorithms(prism.reproducible, warn_only=True)
    with process_group(prism.hardware.device) as ranks, _log(prism, ranks) as log:
        if log:
            log.note("pairing")
        groups = _pairs(prism)
        warmup = Warmup(prism, ranks, checkpoint)
        warmup.train(groups, log)
        if warmup.step < prism.steps:
            return {}, warmup.step
        figures = _figures(groups, warmup.measure(groups.heldout))
        warmup.publish(figures)
        return figures, warmup.step


class Warmup:
    """The discriminator of one rank, in training."""

    def __init__(self, prism: Prism, ranks: Ranks, checkpoint: Checkpoint | None):
        self._prism, self._ranks = prism, ranks
        settings = prism.discriminator
        self.model = _load(prism, ranks)
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        warmup_steps = math.ceil(LR_WARMUP_SHARE * prism.steps)
        self._schedule = get_cosine_schedule_with_warmup(self._optimizer, warmup_steps, prism.steps)
        self._state = TrainingState(self.model, self._optimizer, self._schedule, ranks)
        self.step = 0
        if checkpoint:
            self._state.restore(checkpoint.folder)
            self.step = checkpoint.step
        step_settings = StepSettings.from_mapping(settings.model_dump())
        self._learn = DiscriminatorStep(
            self.model,
            replace(step_settings, updates_per_step=1, skip_above_accuracy=None),
            Optimization(self._change, self._optimizer.zero_grad),
            Runtime(ranks, getattr(torch, prism.hardware.dtype)),
            prism.output,
            self.step,
        )

    def train(self, groups: WarmupGroups, log: MetricsLog | None) -> None:
        """Make the remaining steps, or those up to the one after which an end is asked for."""
        self.model.train()
        for batch in self._batches(groups):
            self._train_step(batch, log)
            asked = bool(self._ranks.max(end_requested(self._prism)))
            if self.step < self._prism.steps and (
                asked or self.step % self._prism.checkpoint_every == 0
            ):
                self._state.save(self._prism, self.step)
            if asked:
                return

    def _train_step(self, batch: list[Group], log: MetricsLog | None) -> None:
        self.step += 1
        torch.manual_seed(
            self._prism.seed + self.step * self._ranks.world_size + self._ranks.rank
        )  # a penalty's noise
        result = self._learn(self._ranks.share(batch))
        self._schedule.step()
        if log:
            log.step(self.step, result.metrics | {"lr": self._schedule.get_last_lr()[0]})

    def _batches(self, groups: WarmupGroups) -> Iterator[list[Group]]:
        """Those of the steps to come."""
        warmup, seed = self._prism.warmup, self._prism.seed
        training = add_swapped_teachers(groups.train, warmup.swapped_teachers, seed)
        return islice(
            shuffled_batches(training, warmup.pairs_per_step, seed), self.step, self._prism.steps
        )

    def _change(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self._prism.discriminator.grad_clip
        )
        size = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
        if math.isfinite(size):
            self._optimizer.step()
        return size

    def measure(self, groups: Sequence[Group]) -> dict[str, float]:
        self.model.eval()
        sums = pair_sums(self._learn.score(self._ranks.share(groups)))
        return pair_metrics(dict(zip(sums, self._ranks.sum(list(sums.values())), strict=True)))

    def publish(self, figures: dict[str, float | str]) -> None:
        """The whole of it, on rank 0, in the place where the next stage looks for it."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tensors = get_model_state_dict(self.model, options=options)
        if self._ranks.rank == 0:
            start = upcycled_folder(self._prism)
            with atomic_folder(self._prism.output / "discriminator") as folder:
                shutil.copytree(
                    start,
                    folder,
                    ignore=shutil.ignore_patterns("*.safetensors*"),
                    dirs_exist_ok=True,
                )
                self.model.save_pretrained(folder, state_dict=tensors)
                write_card(
                    folder,
                    self._prism,
                    "discriminator",
                    self._prism.discriminator.upcycle.base,
                    figures,
                )
            for done in (checkpoints_folder(self._prism), start):
                shutil.rmtree(done, ignore_errors=True)
        self._ranks.wait()


def shuffled_batches(groups: Sequence[Group], pairs: int, seed: int) -> Iterator[list[Group]]:
    """Groups with about so many valid pairs, shuffled anew each time round, for ever."""
    shuffler = random.Random(seed)
    batch: list[Group] = []
    while True:
        for group in shuffler.sample(groups, len(groups)):
            batch.append(group)
            if valid_pairs(batch) >= pairs:
                yield batch
                batch = []


def _load(prism: Prism, ranks: Ranks) -> PrismDiscriminatorForTokenClassification:
    model = load_discriminator(upcycled_folder(prism), attention=prism.hardware.attention)
    if prism.hardware.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if ranks.world_size > 1:
        shard(model, ranks, getattr(torch, prism.hardware.dtype))
        return model
    return model.to(ranks.device)


def _log(prism: Prism, ranks: Ranks) -> MetricsLog | nullcontext[None]:
    return MetricsLog(prism.output) if ranks.rank == 0 else nullcontext()


def _rows(prism: Prism) -> list[dict]:
    return pq.read_table(prism.data.train).slice(0, prism.warmup.prompts).to_pylist()


def encode_row(processor: ProcessorMixin, row: Mapping[str, Any]) -> Prompt:
    """Tokenize the prompt of a row, as the policy's rollout does."""
    images = row_images(row, processor.image_processor.patch_size)
    return encode_prompt(processor, chat_messages(row), images)


def _pairs(prism: Prism) -> WarmupGroups:
    lines = rollouts_file(prism).read_text(encoding="utf-8").splitlines()
    processor = AutoProcessor.from_pretrained(prism.policy)
    rows = _rows(prism)
    groups = warmup_groups(
        [encode_row(processor, row) for row in rows],
        [row["teacher_response"] for row in rows],
        [json.loads(line) for line in lines],
        AutoTokenizer.from_pretrained(upcycled_folder(prism)),
        view_limits(
            prism.discriminator.max_perception_tokens, prism.discriminator.max_reasoning_tokens
        ),
        prism.warmup.heldout_fraction,
    )
    if not groups.train:
        raise UserError(
            f"none of {groups.rollouts} rollouts of {prism.policy} is in the format; fine-tune it first"
        )
    return groups


def _figures(groups: WarmupGroups, heldout: dict[str, float]) -> dict[str, float | str]:
    """Held-out accuracy per view. Ties, where the policy wrote what the teacher wrote, are counted apart."""
    figures: dict[str, float | str] = {}
    for view in View:
        ties = heldout[f"{view.value}/ties"]
        if ties < 1:
            decided = (heldout[f"{view.value}/accuracy"] - 0.5 * ties) / (1 - ties)
            figures[f"held-out {view.value} accuracy"] = f"{decided:.2f} ({ties:.0%} ties)"
    return figures | {
        "pairs": str(valid_pairs(groups.train)),
        "invalid rollouts": str(groups.invalid),
    }
