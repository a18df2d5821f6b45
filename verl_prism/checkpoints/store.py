"""The checkpoints of a run: how they are published, and which of them are complete.

A stage writes a checkpoint to `<output>/checkpoints/unfinished/global_step_N`. `publish` lists its
files in a manifest, waits until they are on disk and renames the folder to
`<output>/checkpoints/global_step_N`. The rename makes the checkpoint exist, in one instant. Nothing
is ever read from `unfinished`.

This module does not import torch, so that checkpoints can be checked before anything is started.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verl_prism.checkpoints.preemption import end_requested
from verl_prism.errors import EndedEarly, UserError
from verl_prism.files import sync, sync_tree, write_atomically
from verl_prism.report.metrics import write_records
from verl_prism.run_folder import RunFolder

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"  # a copy of the run's metrics up to the checkpoint
POINTER = "latest_checkpointed_iteration.txt"  # verl's own tools expect this name
STEP = "global_step_"  # verl reads the step from the folder's name
WEIGHTS = ", its weights"  # after a model's key in a fingerprint: a digest of what is in its folder


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    world_sizes: number of ranks that saved each part, by the part's subfolder.
    fingerprint: see `verl_prism.checkpoints.fingerprint`.
    """

    folder: Path
    step: int
    world_sizes: dict[str, int]
    fingerprint: dict[str, Any]

    @property
    def metrics(self) -> Path:
        """Metrics of the run up to this checkpoint."""
        return self.folder / METRICS


@dataclass(frozen=True)
class CheckpointStore:
    """Publishes and finds the checkpoints of one run.

    fingerprint: settings that a run must share with a checkpoint to resume from it.
    world_sizes: number of ranks that save each part of a checkpoint, by the part's subfolder.
    keep: number of most recent checkpoints to keep.
    """

    run: RunFolder
    fingerprint: Mapping[str, Any]
    world_sizes: Mapping[str, int]
    keep: int

    def unfinished(self, step: int) -> Path:
        """Return the folder to write the checkpoint of a step to, before it is published."""
        return self.run.unfinished_checkpoints / f"{STEP}{step}"

    def publish(self, step: int) -> Path:
        """Make the checkpoint written for `step` the newest one, and remove the oldest ones.

        Raises UserError if the files of a rank are missing.
        """
        unfinished = self.unfinished(step)
        target = self.run.checkpoints / unfinished.name
        self._check_ranks(unfinished)
        write_records(self.run, unfinished / METRICS)
        write_manifest(unfinished, step, self.world_sizes, self.fingerprint)
        sync_tree(unfinished)
        if target.exists():  # damaged: the run did not resume from it
            target.rename(unfinished.with_name(f"damaged_{step}"))
        unfinished.rename(target)
        sync(target.parent)
        write_atomically(target.parent / POINTER, str(step))
        self._prune(step)
        return target

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest complete checkpoint, and what is wrong with each later one.

        Its fingerprint is made `comparable` with the run's.
        """
        damaged: list[str] = []
        for folder in reversed(published(self.run)):
            damage = _damage(folder)
            if damage is None:
                checkpoint = _read(folder)
                settings = comparable(checkpoint.fingerprint, self.fingerprint)
                return replace(checkpoint, fingerprint=settings), damaged
            damaged.append(f"{folder}: {damage}")
        return None, damaged

    def reached(self, step: int) -> bool:
        """Return whether the newest complete checkpoint is the one of `step`."""
        checkpoint, _ = self.newest()
        return checkpoint is not None and checkpoint.step == step

    def last(self, steps: int) -> Path:
        """Return the folder of the checkpoint of the run's last step.

        Raises EndedEarly if the newest checkpoint is of an earlier step, or if an early end was
        requested before there was one.
        """
        checkpoint, damaged = self.newest()
        if checkpoint is None and end_requested(self.run):
            raise EndedEarly(0)
        if checkpoint is None:
            raise FileNotFoundError(
                f"no complete checkpoint in {self.run.checkpoints} {'; '.join(damaged)}"
            )
        if checkpoint.step < steps:
            raise EndedEarly(checkpoint.step)
        return checkpoint.folder

    def _check_ranks(self, folder: Path) -> None:
        for part, world_size in self.world_sizes.items():
            for rank in range(world_size):
                file = folder / part / f"model_world_size_{world_size}_rank_{rank}.pt"
                if not file.exists():
                    raise UserError(
                        f"{file} is missing: a rank wrote it to another disk. "
                        "Put prism.output on a disk that all nodes share"
                    )

    def _prune(self, step: int) -> None:
        """Remove old checkpoints, and those after `step`: the run resumed before the latter."""
        folders = published(self.run)
        kept = [folder for folder in folders if _step(folder) <= step][-self.keep :]
        removed = [folder for folder in folders if folder not in kept]
        removed += [self.run.unfinished_checkpoints, self.run.replaced_checkpoints]
        for folder in removed:
            shutil.rmtree(folder, ignore_errors=True)


def comparable(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return saved settings without differences from `wanted` that do not change a run.

    Model folders with the same weights may have different paths. A digest of weights that only one
    side has is ignored: older versions saved none.
    """
    settings = dict(saved)
    for digest in {key for key in (*saved, *wanted) if key.endswith(WEIGHTS)}:
        if digest not in wanted:
            del settings[digest]
        elif digest not in saved:
            settings[digest] = wanted[digest]
        elif saved[digest] == wanted[digest]:
            folder = digest.removesuffix(WEIGHTS)
            settings[folder] = wanted[folder]
    return settings


def published(run: RunFolder) -> list[Path]:
    """Return the folders of all published checkpoints, damaged ones included, the newest last."""
    folders = run.checkpoints.glob(f"{STEP}*")
    numbered = [folder for folder in folders if folder.name.removeprefix(STEP).isdigit()]
    return sorted(numbered, key=_step)


def write_manifest(
    folder: Path, step: int, world_sizes: Mapping[str, int], fingerprint: Mapping[str, Any]
) -> None:
    """List the files of a checkpoint, which makes it complete."""
    manifest = {
        "step": step,
        "ranks": dict(world_sizes),
        "settings": dict(fingerprint),
        "files": _sizes(folder),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in a folder.

    Raises UserError if it is not complete.
    """
    damage = _damage(folder)
    if damage is not None:
        raise UserError(f"{folder} is not a complete checkpoint: {damage}")
    return _read(folder)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(STEP))


def _read(folder: Path) -> Checkpoint:
    manifest = json.loads((folder / MANIFEST).read_text())
    return Checkpoint(folder, manifest["step"], manifest["ranks"], manifest["settings"])


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of each file, by its path in the folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(file.relative_to(folder)): file.stat().st_size for file in files}


def _damage(folder: Path) -> str | None:
    """Compare a checkpoint's files with its manifest, without opening them."""
    if not (folder / MANIFEST).is_file():
        return f"{MANIFEST} is missing"
    try:
        sizes = json.loads((folder / MANIFEST).read_text())["files"]
    except (ValueError, KeyError):
        return f"{MANIFEST} is not readable"
    found = _sizes(folder)
    for name, size in sizes.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != size:
            return f"{name} has {found[name]} of {size} bytes"
    return None
