"""Complete checkpoints: how one comes to be, in one instant, and which there are.

A stage writes to `<output>/checkpoints/unfinished/global_step_N`, in as many files as it likes. `publish` lists them in
a manifest, waits until all are on disk and renames the folder to `<output>/checkpoints/global_step_N`: from then on,
and not before, the checkpoint exists. Nothing ever reads below `unfinished`.

Without torch, so that it is asked before anything is started.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_prism.checkpoints.fingerprint import decisive_settings, ranks
from verl_prism.config import Prism
from verl_prism.errors import EndedEarly, UserError
from verl_prism.files import write_atomically, sync, sync_tree
from verl_prism.report.metrics import METRICS, write_records

MANIFEST = "manifest.json"
POINTER = "latest_checkpointed_iteration.txt"  # as verl names it, for verl's own tools
STEP = "global_step_"  # verl finds the step in a folder's name


@dataclass(frozen=True)
class Checkpoint:
    """ranks: those of each part, keyed by its subfolder. settings: see `decisive_settings`."""

    folder: Path
    step: int
    ranks: dict[str, int]
    settings: dict[str, Any]


def checkpoints_folder(prism: Prism) -> Path:
    return prism.output / "checkpoints"


def unfinished_folder(prism: Prism) -> Path:
    return checkpoints_folder(prism) / "unfinished"


def publish(prism: Prism, step: int) -> Path:
    """Makes the folder written for `step` the newest complete checkpoint, then removes those that are too many.

    Raises UserError where a rank's files are not beside the others'.
    """
    aside, target = (
        folder(prism) / f"{STEP}{step}" for folder in (unfinished_folder, checkpoints_folder)
    )
    _check_ranks(prism, aside)
    write_records(prism.output, aside / METRICS)
    manifest = {
        "step": step,
        "ranks": ranks(prism),
        "settings": decisive_settings(prism),
        "files": _sizes(aside),
    }
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=2))
    sync_tree(aside)
    if target.exists():  # a damaged one that the run did not go on from
        target.rename(aside.with_name(f"damaged_{step}"))
    aside.rename(target)
    sync(target.parent)
    write_atomically(target.parent / POINTER, str(step))
    _prune(prism, step)
    return target


def newest_checkpoint(prism: Prism) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete one, and what is wrong with each of those after it."""
    damaged: list[str] = []
    for folder in reversed(published(prism)):
        fault = _fault(folder)
        if fault is None:
            manifest = json.loads((folder / MANIFEST).read_text())
            return Checkpoint(
                folder, manifest["step"], manifest["ranks"], manifest["settings"]
            ), damaged
        damaged.append(f"{folder}: {fault}")
    return None, damaged


def last_step_saved(prism: Prism) -> bool:
    """Whether a resumed run has nothing left to train."""
    checkpoint, _ = newest_checkpoint(prism)
    return prism.resume and checkpoint is not None and checkpoint.step == prism.steps


def last_checkpoint(prism: Prism) -> Path:
    """The one that the stage's result is made from. Raises EndedEarly where it is not of the last step."""
    checkpoint, damaged = newest_checkpoint(prism)
    if checkpoint is None:
        raise FileNotFoundError(
            f"no complete checkpoint in {checkpoints_folder(prism)} {'; '.join(damaged)}"
        )
    if checkpoint.step < prism.steps:
        raise EndedEarly(checkpoint.step)
    return checkpoint.folder


def published(prism: Prism) -> list[Path]:
    """The newest last."""
    folders = [
        path
        for path in checkpoints_folder(prism).glob(f"{STEP}*")
        if path.name[len(STEP) :].isdigit()
    ]
    return sorted(folders, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name[len(STEP) :])


def _check_ranks(prism: Prism, folder: Path) -> None:
    for part, count in ranks(prism).items():
        for rank in range(count):
            file = folder / part / f"model_world_size_{count}_rank_{rank}.pt"
            if not file.exists():
                raise UserError(
                    f"{file} was written elsewhere: prism.output has to be on a disk that all nodes share"
                )


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(f.relative_to(folder)): f.stat().st_size
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


def _fault(folder: Path) -> str | None:
    """What the manifest says is there, and is not; its files are not opened."""
    if not (folder / MANIFEST).is_file():
        return f"{MANIFEST} is not there"
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (ValueError, KeyError):
        return f"{MANIFEST} is not readable"
    found = _sizes(folder)
    for name, size in files.items():
        if name not in found:
            return f"{name} is not there"
        if found[name] != size:
            return f"{name} has {found[name]} bytes of {size}"
    return None


def _prune(prism: Prism, step: int) -> None:
    """What stays are the last up to `step`: those after it are damaged, as the run did not go on from them."""
    kept = [folder for folder in published(prism) if _step(folder) <= step][
        -prism.keep_checkpoints :
    ]
    others = [folder for folder in published(prism) if folder not in kept]
    for folder in (*others, unfinished_folder(prism), replaced_folder(prism)):
        shutil.rmtree(folder, ignore_errors=True)


def replaced_folder(prism: Prism) -> Path:
    """The checkpoints of an earlier run that this one replaces: kept until this one has a checkpoint."""
    return prism.output / "checkpoints.replaced"
