"""verl's hybrid worker with our policy losses, and with a longer timeout of collectives.

verl has no setting for the timeout.
"""

from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers.engine_workers import ActorRolloutRefWorker

import verl_prism.trainer.on_policy  # noqa: F401  registers the policy losses in this process
from verl_prism.discriminator.ranks import COLLECTIVE_TIMEOUT


def connect_ranks() -> None:
    """Make the process group of this worker's ranks, unless it exists.

    verl would make it with torch's timeout of ten minutes, which is shorter than a slow save.
    """
    initialize_global_process_group_ray(timeout_second=int(COLLECTIVE_TIMEOUT.total_seconds()))


class PrismWorker(ActorRolloutRefWorker):
    """verl's worker of actor, rollout and reference."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """Connect the ranks, and build verl's models."""
        connect_ranks()
        super().init_model()
