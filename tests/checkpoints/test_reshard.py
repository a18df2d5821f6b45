"""A checkpoint converted to another number of ranks is the same checkpoint."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints.resharded_ranks import continue_from, save_after_two_steps
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten_with_path

from verl_prism.checkpoints.reshard import main, move_position, shard_rows
from verl_prism.checkpoints.store import MANIFEST, read_checkpoint, write_manifest
from verl_prism.discriminator import on_ranks
from verl_prism.discriminator.replay import replay_file

# torchdata's state after two steps, of four demonstrations on each rank.
POSITION = {"_snapshot": {"_snapshot_step": 2, "_main": {"samples_yielded": 8, "seed": None}}}


def checkpoint(folder: Path, world_size: int) -> Path:
    """Save a checkpoint of stage sft, as verl and the store do."""
    folder.mkdir()
    on_ranks(world_size, save_after_two_steps, folder)
    for rank in range(world_size):
        torch.save(POSITION, folder / f"data_{rank}.pt")
    (folder / "huggingface").mkdir()
    (folder / "huggingface" / "model.safetensors").write_text("weights")
    (folder / "fsdp_config.json").write_text(f'{{"FSDP_version": 2, "world_size": {world_size}}}')
    write_manifest(folder, 2, {".": world_size}, {"prism.seed": 0})
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """A checkpoint of one rank."""
    patch = pytest.MonkeyPatch()
    names = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in names.items():
        patch.setenv(name, value)
    yield checkpoint(tmp_path_factory.mktemp("single") / "global_step_2", 1)
    patch.undo()


def leaves(folder: Path) -> dict[str, object]:
    """Everything in the files of rank 0, with the bytes of tensors."""
    found = {}
    for file in sorted(folder.glob("*.pt")):
        for path, leaf in tree_flatten_with_path(torch.load(file, weights_only=False))[0]:
            if isinstance(leaf, DTensor):
                leaf = leaf.to_local()
            if isinstance(leaf, torch.Tensor):
                leaf = (leaf.dtype, leaf.shape, leaf.numpy().tobytes())
            found[f"{file.name} {path}"] = repr(leaf)
    return found


def convert(source: Path, target: Path, *sizes: str) -> Path:
    """Copy a checkpoint and convert it to each number of ranks in turn."""
    os.system(f"cp -r {source} {target}")
    for size in sizes:
        assert main([str(target), "--world-size", size]) == 0
    return target


def test_one_to_several_ranks_and_back_is_equal_bit_for_bit(single, tmp_path):
    back = convert(single, tmp_path / "global_step_2", "2", "8", "4", "1")
    assert leaves(back) == leaves(single)
    assert {file.name for file in back.rglob("*")} == {file.name for file in single.rglob("*")}


@pytest.mark.slow
def test_two_ranks_continue_like_one(single, tmp_path):
    two = convert(single, tmp_path / "global_step_2", "2")
    assert read_checkpoint(two).world_sizes == {".": 2}
    assert read_checkpoint(two).fingerprint == {"prism.seed": 0}
    assert json.loads((two / "fsdp_config.json").read_text())["world_size"] == 2
    expected_loaded, expected, expected_rate = continue_from(single)
    loaded, found, rate = on_ranks(2, continue_from, two)
    assert loaded == expected_loaded
    assert rate == expected_rate
    for name in expected:
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(expected[name]))


def test_remembered_groups_are_divided_among_the_ranks(single, tmp_path):
    source = tmp_path / "source" / "global_step_2"
    shutil.copytree(single, source)
    groups = [(step, {"prompt_ids": torch.tensor([step])}) for step in (1, 1, 2, 3, 3)]
    torch.save(groups, replay_file(source, 0))
    (source / MANIFEST).unlink()
    write_manifest(source, 2, {".": 1}, {"prism.seed": 0})

    def steps(folder: Path, rank: int) -> list[int]:
        return [step for step, _ in torch.load(replay_file(folder, rank))]

    two = convert(source, tmp_path / "global_step_2", "2")
    assert [steps(two, rank) for rank in (0, 1)] == [[1, 2, 3], [1, 3]]
    assert main([str(two), "--world-size", "1"]) == 0
    assert steps(two, 0) == [1, 1, 2, 3, 3]
    assert not replay_file(two, 1).exists()


def test_a_new_rank_has_no_random_state_of_another_rank(single, tmp_path):
    two = convert(single, tmp_path / "global_step_2", "2")
    extras = [
        torch.load(two / f"extra_state_world_size_2_rank_{rank}.pt", weights_only=False)
        for rank in range(2)
    ]
    assert extras[0].keys() == {"lr_scheduler", "rng"}
    assert extras[1].keys() == {"lr_scheduler"}


def test_each_rank_has_read_its_share_of_the_same_rows():
    moved = move_position(POSITION, saved=2, wanted=4)
    assert moved["_snapshot"]["_main"] == {"samples_yielded": 4, "seed": None}
    assert moved["_snapshot"]["_snapshot_step"] == 2


@given(rows=st.integers(0, 40), world_size=st.integers(1, 9))
def test_shards_are_those_of_torch(rows, world_size):
    chunks = list(torch.arange(rows).chunk(world_size))
    for rank in range(world_size):
        expected = chunks[rank].tolist() if rank < len(chunks) else []
        assert list(shard_rows(rows, rank, world_size)) == (expected if rows else [])


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("0", "--world-size 0: write a number"),
        ("many", "--world-size many: write a number"),
        ("actor=2", "write a number, or one for each of ., such as .=1"),
        ("3", "8 demonstrations were read, which do not divide among 3 ranks"),
    ],
)
def test_a_wrong_number_of_ranks_changes_nothing(single, tmp_path, capsys, size, message):
    folder = convert(single, tmp_path / "global_step_2")
    assert main([str(folder), "--world-size", size]) == 2
    assert message in capsys.readouterr().err
    assert leaves(folder) == leaves(single)


def test_a_damaged_checkpoint_is_named(tmp_path, capsys):
    assert main([str(tmp_path), "--world-size", "2"]) == 2
    expected = f"verl_prism: {tmp_path} is not a complete checkpoint: manifest.json is missing\n"
    assert capsys.readouterr().err == expected
