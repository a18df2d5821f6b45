"""Run one of the two ranks of a trial all-reduce.

python -m verl_prism.doctor.all_reduce BACKEND STORE RANK
"""

import sys
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=60)


def main(backend: str, store: str, rank: int) -> None:
    """Add up 1 and 2 with the other rank, which uses the same file as store."""
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    dist.init_process_group(
        backend, init_method=f"file://{store}", rank=rank, world_size=2, timeout=TIMEOUT
    )
    number = torch.tensor([rank + 1.0], device=device)
    dist.all_reduce(number)
    assert number.item() == 3.0, f"1 + 2 was {number.item()}"
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
