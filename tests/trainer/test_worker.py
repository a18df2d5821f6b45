"""verl's worker on shares of a batch in which all rows have the same length."""

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils

from verl_prism.trainer.worker import PolicyWorker, PrismWorker, restore_ragged_positions


def transferred(lengths: list[int]) -> TensorDict:
    """Positions as TransferQueue hands them out: position_ids[4, T] of each row."""
    rows = [torch.arange(4 * length).reshape(4, length) for length in lengths]
    positions = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    return TensorDict({"position_ids": positions}, batch_size=len(lengths))


@pytest.mark.parametrize("lengths", [[5], [5, 5], [5, 7], [4, 4, 4]])
def test_every_row_of_a_share_arrives(lengths):
    data = transferred(lengths)
    restore_ragged_positions(data)
    tensordict_utils.maybe_fix_3d_position_ids(data)
    settings = {"mini_batch_size": 1, "epochs": 1, "seed": 0, "dataloader_kwargs": {}}
    found = [batch["position_ids"] for batch in tensordict_utils.make_iterator(data, **settings)]
    assert [row.shape[-1] for batch in found for row in batch.unbind()] == lengths
    for batch, length in zip(found, lengths, strict=True):
        assert torch.equal(batch.unbind()[0], torch.arange(4 * length).reshape(4, length))


def test_text_positions_stay():
    data = TensorDict({"position_ids": torch.arange(6).reshape(2, 3)}, batch_size=2)
    restore_ragged_positions(data)
    assert data["position_ids"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_actor_and_reference_use_the_worker():
    assert PrismWorker.actor_worker_cls is PrismWorker.ref_worker_cls is PolicyWorker
