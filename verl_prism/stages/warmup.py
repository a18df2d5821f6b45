"""Stage `warmup`: the discriminator learns offline to tell the teacher's texts from the policy's.

The policy answers training prompts, and each valid answer is paired with the teacher's. Accuracy on
held-out prompts shows whether the discriminator has learned the difference or memorized the pairs.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from verl_prism.checkpoints.fingerprint import checkpoint_store
from verl_prism.checkpoints.model_card import ModelCard
from verl_prism.checkpoints.preemption import end_requested
from verl_prism.checkpoints.store import Checkpoint, CheckpointStore
from verl_prism.config import Prism, Upcycle
from verl_prism.data.rows import train_rows
from verl_prism.discriminator import Ranks, process_group, upcycle
from verl_prism.errors import EndedEarly
from verl_prism.files import atomic_folder, write_atomically
from verl_prism.launcher.ranks import on_all_devices
from verl_prism.report.metrics import MetricsLog
from verl_prism.response import View
from verl_prism.run_folder import RunFolder
from verl_prism.stages.sampling import sample_training_rows
from verl_prism.stages.warmup_data import Share, WarmupData, policy_responses
from verl_prism.stages.warmup_samples import step_samples
from verl_prism.stages.warmup_training import WarmupTraining
from verl_prism.trainer.tracking import TrackedMetrics

Row = Mapping[str, Any]
Summary = dict[str, float | str]


def run_warmup(prism: Prism) -> Summary:
    """Sample the policy, train the discriminator, and return its accuracy on held-out pairs.

    Writes `<output>/discriminator`. With `prism.resume` it resumes from the latest checkpoint of an
    unfinished run, if there is one.

    Raises:
        UserError: there are no pairs to train on, or the responses that are there were sampled with
            other settings.
        EndedEarly: an early end was requested, and the last step is saved.
    """
    store = checkpoint_store(prism)
    checkpoint = store.newest()[0] if prism.resume else None
    prepare(prism, checkpoint)
    result = on_all_devices(prism.hardware, train_discriminator, prism, store, checkpoint)
    assert result is not None
    summary, step = result
    if step < prism.steps:
        raise EndedEarly(step)
    return summary


def prepare(prism: Prism, checkpoint: Checkpoint | None) -> None:
    """Write what training starts from: the policy's responses and the upcycled discriminator.

    With a checkpoint both are there, and the responses are only compared with the settings.
    """
    folder = RunFolder(prism.output)
    rows = train_rows(prism)
    with MetricsLog(folder) as log:
        if prism.warmup.responses == "sample":
            sample_training_rows(prism, rows, prism.warmup.samples_per_prompt, log)
        if checkpoint is None:
            make_discriminator(folder.upcycled, prism.discriminator.upcycle, prism.seed, log)


def make_discriminator(folder: Path, settings: Upcycle, seed: int, log: MetricsLog) -> None:
    """Write the discriminator that training starts from to `folder`."""
    upcycle(
        settings.base,
        folder,
        experts=settings.experts,
        experts_per_token=settings.experts_per_token,
        routing=settings.routing,
        scoring=settings.scoring,
        images=settings.images,
        noise=settings.noise,
        seed=seed,
        on_progress=lambda done, total: log.note(f"upcycling {100 * done // max(total, 1)} %"),
    )


@record
def train_discriminator(
    prism: Prism, store: CheckpointStore, checkpoint: Checkpoint | None
) -> tuple[Summary, int]:
    """Train up to `prism.steps` steps on each rank, measure held-out pairs, and export.

    store: with the fingerprint of the run when it started.
    checkpoint: the one to resume from, if any.

    Returns the summary, empty after an early end, and the last step.

    Raises:
        UserError: there are no pairs to train on.
        FloatingPointError: too many steps in a row were not finite; nothing is exported.
    """
    torch.use_deterministic_algorithms(prism.reproducible, warn_only=True)
    folder = RunFolder(prism.output)
    with process_group(prism.hardware.device) as ranks, _open_log(prism, ranks) as log:
        if log:
            log.note("pairing")
        data = WarmupData(prism, policy_responses(prism), ranks)
        training = WarmupTraining(
            folder, prism.discriminator, prism.hardware, prism.steps, ranks, checkpoint
        )
        train(prism, store, training, data, log)
        if training.step < prism.steps:
            return {}, training.step
        heldout = training.measure(_noted(data.heldout_shares(), log))
        if log:
            log.result(training.step, {f"heldout/{name}": heldout[name] for name in heldout})
        summary = summarize(data, heldout)
        export_discriminator(prism, store, training, summary)
        return summary, training.step


def _noted(shares: Iterable[Share], log: MetricsLog | None) -> Iterator[Share]:
    """Yield the shares, and report each one to the launcher."""
    for number, share in enumerate(shares, start=1):
        if log:
            log.note(f"measuring held-out pairs, batch {number}")
        yield share


def _open_log(prism: Prism, ranks: Ranks) -> TrackedMetrics | nullcontext[None]:
    return TrackedMetrics(prism) if ranks.rank == 0 else nullcontext()


def train(
    prism: Prism,
    store: CheckpointStore,
    training: WarmupTraining,
    data: WarmupData,
    log: TrackedMetrics | None,
) -> None:
    """Run the remaining steps. If an early end is requested, save the current step and return."""
    folder = RunFolder(prism.output)
    for share in data.train_shares(training.step):
        result = training.train_step(share, prism.seed)
        if log:
            log.step(training.step, result.metrics)
            count = prism.samples_per_step
            samples = step_samples(training.step, share, result.scores, data.rollouts, count)
            log.samples(training.step, samples)
        end = bool(training.ranks.max(end_requested(folder)))
        due = end or training.step % prism.checkpoint_every == 0
        if due and training.step < prism.steps:
            save_checkpoint(store, training)
        if end:
            return


def save_checkpoint(store: CheckpointStore, training: WarmupTraining) -> None:
    """Save the state of training and publish it as a checkpoint."""
    training.state.save(store.unfinished(training.step))
    if training.ranks.rank == 0:
        store.publish(training.step)
    training.ranks.wait()


def export_discriminator(
    prism: Prism, store: CheckpointStore, training: WarmupTraining, summary: Summary
) -> None:
    """Write the discriminator to `<output>/discriminator` and remove the state of training.

    The run's settings are kept beside it, because the checkpoints that hold them are removed.
    """
    folder = RunFolder(prism.output)
    tensors = training.gathered_tensors()
    if training.ranks.rank == 0:
        settings = json.dumps(dict(store.fingerprint), indent=2) + "\n"
        write_atomically(folder.discriminator_settings, settings)
        with atomic_folder(folder.discriminator) as target:
            weights = shutil.ignore_patterns("*.safetensors*")
            shutil.copytree(folder.upcycled, target, ignore=weights, dirs_exist_ok=True)
            training.model.save_pretrained(target, state_dict=tensors)
            base = prism.discriminator.upcycle.base
            ModelCard.of(prism, "discriminator", base, summary).write(target)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        shutil.rmtree(folder.upcycled, ignore_errors=True)
    training.ranks.wait()


def summarize(data: WarmupData, heldout: Mapping[str, float]) -> Summary:
    """Return held-out accuracy per view, also with scrambled images, and counts.

    Ties count half in `heldout`. The policy sometimes writes exactly what the teacher wrote, so the
    summary shows the share of ties, and accuracy over the other pairs.
    """
    summary: Summary = {}
    for view in View:
        ties = heldout[f"{view.value}/ties"]
        if ties < 1:
            accuracy = _without_ties(heldout[f"{view.value}/accuracy"], ties)
            control = _without_ties(heldout[f"scrambled/{view.value}/accuracy"], ties)
            summary[f"held-out {view.value} accuracy"] = (
                f"{accuracy:.2f} ({ties:.0%} ties; images scrambled: {control:.2f})"
            )
    summary["pairs"] = str(data.train_pairs)
    summary["invalid rollouts"] = str(data.index.invalid)
    return summary


def _without_ties(accuracy: float, ties: float) -> float:
    """Return the accuracy over the pairs that are not tied, from one in which a tie counts half."""
    return (accuracy - 0.5 * ties) / (1 - ties)
