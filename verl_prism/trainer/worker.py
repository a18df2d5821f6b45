"""verl's hybrid worker with our policy losses, and with a longer timeout of collectives.

verl has no setting for the timeout.
"""

from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.distributed import initialize_global_process_group_ray
from verl.utils.tensordict_utils import nested_tensor_from_tensor_list
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

import verl_prism.trainer.on_policy  # noqa: F401  registers the policy losses in this process
from verl_prism.discriminator.ranks import COLLECTIVE_TIMEOUT
from verl_prism.weight_transfer import own_socket


def connect_ranks() -> None:
    """Make the process group of this worker's ranks, unless it exists.

    verl would make it with torch's timeout of ten minutes, which is shorter than a slow save.
    """
    initialize_global_process_group_ray(timeout_second=int(COLLECTIVE_TIMEOUT.total_seconds()))


def restore_ragged_positions(data: TensorDict) -> None:
    """Rebuild mRoPE positions whose rows all have the same length, for example a single row.

    Each row is position_ids[4, T]. TransferQueue makes a nested tensor of the rows, and torch finds
    out from their shapes which dimension is ragged: none, if all rows have the same length. It then
    takes the first one, but verl expects the last.
    """
    positions = data.get("position_ids")
    if positions is None or not positions.is_nested or positions.dim() != 3:
        return
    if positions._ragged_idx == 1:
        rows = list(positions.unbind())
        data["position_ids"] = nested_tensor_from_tensor_list(rows, ragged_idx=2)


class PolicyWorker(TrainingWorker):
    """verl's worker of one model, for shares of a batch in which all rows have the same length."""

    def train_mini_batch(self, data: TensorDict) -> TensorDict:
        """Learn from this rank's share of a batch."""
        restore_ragged_positions(data)
        return super().train_mini_batch(data)

    def infer_batch(self, data: TensorDict) -> TensorDict:
        """Compute the log-probabilities of this rank's share of a batch."""
        restore_ragged_positions(data)
        return super().infer_batch(data)


class PrismWorker(ActorRolloutRefWorker):
    """verl's worker of actor, rollout and reference."""

    actor_worker_cls = PolicyWorker
    ref_worker_cls = PolicyWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Connect the ranks, and build verl's models."""
        connect_ranks()
        super().init_model()
        if self.rollout is not None:
            self.rollout.zmq_handle = own_socket(self.rollout.zmq_handle)
