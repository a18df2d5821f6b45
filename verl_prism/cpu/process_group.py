"""Process groups on a host whose accelerator is the CPU."""

import functools
from typing import Any

import torch.distributed


def accept_repeated_backends() -> None:
    """Make `torch.distributed.init_process_group` accept a device:backend pair that is named twice.

    verl requests `cpu:gloo,<device>:<backend>`. On the CPU platform that is `cpu:gloo,cpu:gloo`,
    which torch refuses.
    """
    original = torch.distributed.init_process_group
    if hasattr(original, "accepts_repeated_backends"):
        return

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        if backend is not None:
            backend = ",".join(dict.fromkeys(backend.split(",")))
        original(backend, *args, **kwargs)

    init_process_group.accepts_repeated_backends = True  # type: ignore[attr-defined]
    torch.distributed.init_process_group = init_process_group
