"""Which checkpoint a stage resumes from, and whether it can: checked before anything is started."""

from collections.abc import Mapping

from verl_prism.checkpoints.store import Checkpoint, CheckpointStore
from verl_prism.config import RENAMED_KEYS, Stage
from verl_prism.errors import UserError
from verl_prism.run_folder import RunFolder


def checkpoint_to_resume(
    store: CheckpointStore, stage: Stage, steps: int
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest complete checkpoint, if any, and the damaged ones that are skipped.

    Raises UserError if all checkpoints are damaged, if the newest complete one belongs to a
    different run, or if this run cannot load it.
    """
    checkpoint, damaged = store.newest()
    if checkpoint is None and damaged:
        raise UserError(
            f"prism.resume=true, but no checkpoint is complete: {'; '.join(damaged)}. "
            "To give them up and start from scratch, leave out prism.resume"
        )
    if checkpoint:
        check_settings(checkpoint, store.fingerprint)
        _check_steps(checkpoint, steps)
        _check_world_sizes(checkpoint, store.world_sizes)
        if stage == "warmup":
            _check_warmup_files(checkpoint, store.run)
    return checkpoint, damaged


def resume_notes(run: RunFolder, checkpoint: Checkpoint | None, damaged: list[str]) -> list[str]:
    """Return what the console says about where the run starts."""
    notes = [f"skipping a damaged checkpoint: {damage}" for damage in damaged]
    if checkpoint is None:
        for responses in (run.rollouts, run.sample_journals):
            if responses.exists():
                return [*notes, f"keeping the responses in {responses}"]
        if run.reference.exists():
            return [*notes, f"keeping the log-probabilities in {run.reference}"]
        if run.log.exists():  # otherwise nothing has run here yet
            notes.append(f"no checkpoint in {run.checkpoints}; starting from scratch")
        return notes
    return [*notes, f"resuming from step {checkpoint.step} of {checkpoint.folder}"]


def check_settings(checkpoint: Checkpoint, wanted: Mapping[str, object]) -> None:
    """Check that a run has the settings of a checkpoint.

    Raises:
        UserError: names each setting that differs.
    """
    saved = {RENAMED_KEYS.get(key, key): value for key, value in checkpoint.fingerprint.items()}
    keys = [key for key in sorted({*saved, *wanted}) if saved.get(key) != wanted.get(key)]
    if keys:
        changed = [f"{key}={wanted.get(key)} (was {saved.get(key)})" for key in keys]
        raise UserError(
            f"prism.resume=true, but {checkpoint.folder} was saved with different settings: "
            f"{', '.join(changed)}. Use the same settings, or start from scratch without resume"
        )


def _check_steps(checkpoint: Checkpoint, steps: int) -> None:
    if checkpoint.step > steps:
        raise UserError(f"prism.resume=true, but {checkpoint.folder} is beyond prism.steps={steps}")


def _check_world_sizes(checkpoint: Checkpoint, wanted: Mapping[str, int]) -> None:
    """verl loads a checkpoint only with the number of ranks that saved it."""
    if checkpoint.world_sizes == wanted:
        return
    target = ",".join(f"{part}={count}" for part, count in wanted.items())
    if len(set(wanted.values())) == 1:
        target = str(next(iter(wanted.values())))
    raise UserError(
        f"prism.resume=true, but {checkpoint.folder} was saved by a different number of ranks "
        f"({_counts(checkpoint.world_sizes)}; this run has {_counts(wanted)}). Use as many devices "
        "as before, or convert the checkpoint:\n"
        f"  python -m verl_prism.checkpoints.reshard {checkpoint.folder} --world-size {target}"
    )


def _counts(world_sizes: Mapping[str, int]) -> str:
    counts = [f"{part} {count}" for part, count in world_sizes.items()]
    return ", ".join(counts).removeprefix(". ")  # stage sft has one part, the whole checkpoint


def _check_warmup_files(checkpoint: Checkpoint, run: RunFolder) -> None:
    files = [run.upcycled]
    if checkpoint.fingerprint["prism.warmup.responses"] == "sample":
        files.append(run.rollouts)
    for path in files:
        if not path.exists():
            raise UserError(
                f"prism.resume=true, but {path} is missing, and {checkpoint.folder} needs it. "
                "Start from scratch without resume"
            )
