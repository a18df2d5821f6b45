"""Convert a checkpoint to another number of ranks: python -m verl_prism.checkpoints.reshard.

verl saves one file per rank, and loads a checkpoint only with as many ranks. The conversion keeps
weights, optimizer states and the learning-rate schedule bit for bit, and the position in the data.
It keeps the random states of the ranks that exist before and after; further ranks start from the
run's seed. Memory holds the shard of one rank at a time.
"""

import argparse
import json
import logging
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec

from verl_prism.checkpoints.store import MANIFEST, Checkpoint, read_checkpoint, write_manifest
from verl_prism.errors import UserError
from verl_prism.files import atomic_folder, link_or_copy
from verl_prism.sharding import shard_dimension

HELP = """\
usage: python -m verl_prism.checkpoints.reshard CHECKPOINT --world-size N

Convert a checkpoint of stage sft, dpo, align or rlvr to N ranks, so that a run with N devices can
resume from it. CHECKPOINT is its folder (global_step_…), which is replaced once the conversion is
complete. Checkpoints of stage warmup need no conversion.

  --world-size N                         Number of ranks of the run that will resume
  --world-size actor=N,discriminator=M   The same for a discriminator on devices of its own
"""
FSDP_CONFIG = "fsdp_config.json"
REPLAY = "replay_rank_{}.pt"  # as verl_prism.discriminator.replay names it
SAMPLES_YIELDED = "samples_yielded"  # of torchdata's batch sampler


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert a checkpoint. Return 0, or 2 after a user's error."""
    parser = argparse.ArgumentParser(prog="verl_prism.checkpoints.reshard", add_help=False)
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("--world-size")
    parser.add_argument("--help", "-h", action="store_true")
    options = parser.parse_args(arguments)
    if options.help or not (options.checkpoint and options.world_size):
        sys.stdout.write(HELP)
        return 0 if options.help else 2
    try:
        checkpoint = read_checkpoint(options.checkpoint.absolute())
        reshard(checkpoint, parse_world_sizes(options.world_size, checkpoint))
    except UserError as error:
        sys.stderr.write(f"verl_prism: {error}\n")
        return 2
    return 0


def parse_world_sizes(text: str, checkpoint: Checkpoint) -> dict[str, int]:
    """Return the number of ranks of each part, from "8" or "actor=8,discriminator=4"."""
    parts = checkpoint.world_sizes
    if not parts:
        raise UserError(f"{checkpoint.folder} loads with any number of ranks")
    sizes = dict.fromkeys(parts, text)
    if "=" in text:
        sizes = dict(item.partition("=")[::2] for item in text.split(","))
    if sizes.keys() != parts.keys() or not all(
        size.isdigit() and int(size) for size in sizes.values()
    ):
        raise UserError(
            f"--world-size {text}: write a number, or one for each of {', '.join(parts)}, such as "
            + ",".join(f"{part}={size}" for part, size in parts.items())
        )
    return {part: int(size) for part, size in sizes.items()}


def reshard(checkpoint: Checkpoint, world_sizes: Mapping[str, int]) -> None:
    """Replace a checkpoint by one for other numbers of ranks. Other files are linked.

    world_sizes: number of ranks of each part, by the part's subfolder.
    """
    # Unpickling a mesh warns that the process groups of its run do not exist here.
    logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)
    source = checkpoint.folder
    with atomic_folder(source) as target:
        rewritten = shutil.ignore_patterns("*_rank_*.pt", "data_*.pt", FSDP_CONFIG, MANIFEST)
        shutil.copytree(
            source, target, copy_function=link_or_copy, ignore=rewritten, dirs_exist_ok=True
        )
        for part, saved in checkpoint.world_sizes.items():
            reshard_part(source / part, target / part, saved, world_sizes[part])
        write_manifest(target, checkpoint.step, world_sizes, checkpoint.fingerprint)


def reshard_part(source: Path, target: Path, saved: int, wanted: int) -> None:
    """Write the files of `wanted` ranks to `target`, from those of `saved` ranks in `source`."""
    for kind in ("model", "optim"):
        shards = [_load(_shard_file(source, kind, saved, rank)) for rank in range(saved)]
        for rank in range(wanted):
            torch.save(cut(shards, rank, wanted), _shard_file(target, kind, wanted, rank))
    for rank in range(wanted):
        extra = _load(_shard_file(source, "extra_state", saved, min(rank, saved - 1)))
        if rank >= saved:
            extra.pop("rng", None)  # verl then keeps the state that the rank starts with
        torch.save(extra, _shard_file(target, "extra_state", wanted, rank))
    _share_replay(source, target, saved, wanted)
    config = json.loads((source / FSDP_CONFIG).read_text())
    (target / FSDP_CONFIG).write_text(json.dumps(config | {"world_size": wanted}, indent=4))
    if (source / "data_0.pt").exists():  # stage sft; in the others verl's controller reads data
        position = move_position(_load(source / "data_0.pt"), saved, wanted)
        for rank in range(wanted):
            torch.save(position, target / f"data_{rank}.pt")


def _share_replay(source: Path, target: Path, saved: int, wanted: int) -> None:
    """Divide the groups that the discriminator's ranks remember, if they do."""
    if not (source / REPLAY.format(0)).exists():
        return
    groups = [group for rank in range(saved) for group in _load(source / REPLAY.format(rank))]
    groups.sort(key=itemgetter(0))  # the step
    for rank in range(wanted):
        torch.save(groups[rank::wanted], target / REPLAY.format(rank))


def cut(shards: Sequence[Any], rank: int, world_size: int) -> Any:
    """Return the part of one of `world_size` ranks, from the states that other ranks have saved.

    DTensors are cut anew. All else is the same on every rank.
    """
    first = shards[0]
    match first:
        case DTensor():
            return _cut_tensor(shards, rank, world_size)
        case dict():
            return {key: cut([shard[key] for shard in shards], rank, world_size) for key in first}
        case list():
            items = zip(*shards, strict=True)
            return [cut(item, rank, world_size) for item in items]
    return first


def _cut_tensor(shards: Sequence[DTensor], rank: int, world_size: int) -> DTensor:
    first = shards[0]
    saved = _placement(first.shape, len(shards))
    if first.placements != saved:
        raise UserError(
            f"a tensor is placed as {first.placements} instead of {saved}, and only checkpoints "
            "that are sharded over all ranks can be converted"
        )
    placements = _placement(first.shape, world_size)
    if placements == saved:
        local = _cut_rows(shards, rank, world_size, saved[0].dim)
    else:
        whole = torch.cat([shard.to_local() for shard in shards], saved[0].dim)
        size = first.shape[placements[0].dim]
        local = _rows(whole, shard_rows(size, rank, world_size), placements[0].dim).clone()
    old = first.device_mesh
    mesh = DeviceMesh(
        old.device_type,
        torch.arange(world_size),
        mesh_dim_names=old.mesh_dim_names,
        _init_backend=False,
        _rank=rank,
    )
    spec = DTensorSpec(mesh, placements, tensor_meta=first._spec.tensor_meta)
    return DTensor(local, spec, requires_grad=first.requires_grad)


def _placement(shape: Sequence[int], world_size: int) -> tuple[Shard]:
    return (Shard(shard_dimension(shape, world_size)),)


def _cut_rows(shards: Sequence[DTensor], rank: int, world_size: int, dimension: int) -> Tensor:
    """Return a rank's rows, along the dimension along which the shards are divided too."""
    rows = shards[0].shape[dimension]
    wanted = shard_rows(rows, rank, world_size)
    pieces = [_rows(shards[0].to_local(), range(0), dimension)]
    for number, shard in enumerate(shards):
        held = shard_rows(rows, number, len(shards))
        local = shard.to_local()
        found = local.shape[dimension]
        assert found == len(held), f"{found} rows in shard {number} of {len(shards)}"
        start = max(wanted.start, held.start) - held.start
        stop = min(wanted.stop, held.stop) - held.start
        if start < stop:
            pieces.append(_rows(local, range(start, stop), dimension))
    return torch.cat(pieces, dimension)


def _rows(tensor: Tensor, rows: range, dimension: int) -> Tensor:
    return tensor.narrow(dimension, rows.start, len(rows))


def shard_rows(rows: int, rank: int, world_size: int) -> range:
    """Return the rows of a tensor that FSDP2 gives to a rank."""
    size = math.ceil(rows / world_size)
    return range(min(rank * size, rows), min((rank + 1) * size, rows))


def move_position(state: Any, saved: int, wanted: int) -> Any:
    """Return a data loader's state in which each rank has read its new share of the same rows.

    All ranks together read the same rows in a step, whatever their number.
    """
    if not isinstance(state, dict):
        return state
    moved = {key: move_position(value, saved, wanted) for key, value in state.items()}
    if SAMPLES_YIELDED in moved:
        total = moved[SAMPLES_YIELDED] * saved
        if total % wanted:
            raise UserError(
                f"{total} demonstrations were read, which do not divide among {wanted} ranks"
            )
        moved[SAMPLES_YIELDED] = total // wanted
    return moved


def _shard_file(folder: Path, kind: str, world_size: int, rank: int) -> Path:
    return folder / f"{kind}_world_size_{world_size}_rank_{rank}.pt"


def _load(file: Path) -> Any:
    """Load a file that verl has saved. Tensors are read from disk when they are used."""
    return torch.load(file, map_location="cpu", mmap=True, weights_only=False)


if __name__ == "__main__":
    sys.exit(main())
