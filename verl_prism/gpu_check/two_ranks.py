"""Two ranks, each with a device of its own, against one."""

import torch
from torch.distributed.elastic.multiprocessing.errors import record as recorded

from verl_prism.discriminator import Ranks, on_ranks, process_group, shard
from verl_prism.gpu_check.precision import GRADIENT_LIMIT, checkpoint_activations, random_model
from verl_prism.gpu_check.record import Options, Record
from verl_prism.gpu_check.small import (
    Outcome,
    backward,
    gradient_error,
    small_groups,
    small_setting,
)

# Largest errors of the loss and of the gradients, relative to their norm.
LIMITS = {torch.float32: 1e-3, torch.bfloat16: GRADIENT_LIMIT}


def compare_ranks(options: Options, record: Record) -> None:
    """Compare the loss and the gradients of two ranks with those of one."""
    with process_group(options.device) as ranks:
        one = _outcomes(options.device, options.quick, ranks)
    file = str(options.work / "two-ranks.pt")
    on_ranks(2, _rank, options.device, options.quick, file)
    two: dict[torch.dtype, Outcome] = torch.load(file, weights_only=False)
    for dtype, limit in LIMITS.items():
        loss_error = abs(two[dtype].loss - one[dtype].loss) / one[dtype].loss
        record.check(f"{dtype}: loss", loss_error, limit)
        record.check(f"{dtype}: gradients", gradient_error(one[dtype], two[dtype]), limit)


@recorded
def _rank(device: str, quick: bool, file: str) -> None:
    with process_group(device) as ranks:
        outcomes = _outcomes(device, quick, ranks)
        if ranks.rank == 0:
            torch.save(outcomes, file)


def _outcomes(device: str, quick: bool, ranks: Ranks) -> dict[torch.dtype, Outcome]:
    """Return the gradients, averaged over ranks, and the loss of all ranks."""
    setting = small_setting(device, quick)
    groups = small_groups(setting)[ranks.rank :: ranks.world_size]
    outcomes = {}
    for dtype in LIMITS:
        model = random_model(setting)
        checkpoint_activations(model)
        shard(model, ranks, dtype)
        own = backward(model, groups, ranks)
        outcomes[dtype] = Outcome(own.scores, ranks.sum([own.loss])[0], own.gradients)
    return outcomes
