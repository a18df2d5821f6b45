"""Which checkpoint a stage goes on from, and whether it may: asked before anything is started or removed."""

from pathlib import Path

from verl_prism.checkpoints.fingerprint import decisive_settings, ranks
from verl_prism.checkpoints.store import Checkpoint, checkpoints_folder, newest_checkpoint
from verl_prism.config import Prism
from verl_prism.errors import UserError


def rollouts_file(prism: Prism) -> Path:
    """Of the warm-up. A line for each prompt: the policy's answers."""
    return prism.output / "rollouts.jsonl"


def upcycled_folder(prism: Prism) -> Path:
    """Of the warm-up: the discriminator that training started from."""
    return prism.output / "upcycled"


def checkpoint_to_resume(prism: Prism) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint, None where the stage has saved nothing yet; and the damaged ones passed over.

    Raises UserError where there are damaged ones alone, where it is of another run, or where this run cannot load it.
    """
    checkpoint, damaged = newest_checkpoint(prism)
    if checkpoint is None and damaged:
        raise UserError(
            f"prism.resume=true, but no checkpoint is complete: {'; '.join(damaged)}. To start anew, without resume, "
            f"is to give them up"
        )
    if checkpoint:
        _check_settings(prism, checkpoint)
        _check_ranks(prism, checkpoint)
        _check_files(prism, checkpoint)
    return checkpoint, damaged


def _check_settings(prism: Prism, checkpoint: Checkpoint) -> None:
    before, wanted = checkpoint.settings, decisive_settings(prism)
    changed = [
        f"{key}={wanted.get(key)} (was {before.get(key)})"
        for key in sorted(before | wanted)
        if before.get(key) != wanted.get(key)
    ]
    if changed:
        raise UserError(
            f"prism.resume=true, but {checkpoint.folder} was made with other settings: {', '.join(changed)}; give the "
            "same ones, or start anew without resume"
        )
    if checkpoint.step > prism.steps:
        raise UserError(
            f"prism.resume=true, but {checkpoint.folder} is beyond prism.steps={prism.steps}"
        )


def _check_ranks(prism: Prism, checkpoint: Checkpoint) -> None:
    """verl loads each rank's shards at the same number of ranks alone."""
    if checkpoint.ranks == ranks(prism):
        return
    was, wanted = (
        ", ".join(f"{part} {n}" for part, n in r.items()) for r in (checkpoint.ranks, ranks(prism))
    )
    part = next(iter(checkpoint.ranks))
    anew = [f"stage={prism.stage}", f"prism.policy={checkpoint.folder / part / 'huggingface'}"]
    if "discriminator" in checkpoint.ranks:
        anew.append(
            f"prism.discriminator.path={checkpoint.folder / 'discriminator' / 'huggingface'}"
        )
    raise UserError(
        f"prism.resume=true, but {checkpoint.folder} was saved by another number of ranks ({was}; this run has "
        f"{wanted}), and loads at that number alone. Give as many devices again, or start a new run from its weights, "
        "without its optimizer state, learning-rate schedule and place in the data:\n"
        f"  python -m verl_prism.main {' '.join(anew)} prism.output=…"
    )


def _check_files(prism: Prism, checkpoint: Checkpoint) -> None:
    if prism.stage == "warmup":
        for path in (rollouts_file(prism), upcycled_folder(prism)):
            if not path.exists():
                raise UserError(
                    f"prism.resume=true, but {path}, which {checkpoint.folder} goes with, is not there; start anew "
                    "without resume"
                )


def finished(prism: Prism, checkpoint: Checkpoint | None, result: Path) -> bool:
    """Whether an earlier run of the stage made its result, and all of the steps that are asked for."""
    return result.exists() and (
        prism.stage == "warmup" or (checkpoint is not None and checkpoint.step == prism.steps)
    )


def starting_point(prism: Prism, checkpoint: Checkpoint | None, damaged: list[str]) -> list[str]:
    """For the console: where the run begins, and what it passes over; nothing where that was not the question."""
    if not prism.resume:
        return []
    passed_over = [f"damaged, not gone on from: {fault}" for fault in damaged]
    if checkpoint is None:
        return [
            *passed_over,
            f"nothing to go on from in {checkpoints_folder(prism)}: starting anew",
        ]
    return [*passed_over, f"going on from step {checkpoint.step} of {checkpoint.folder}"]
