"""Reading rows from verl's TransferQueue."""

from typing import Any

import torch
from tensordict import NonTensorData


def column(values: Any) -> list[Any]:
    """Return a field's rows as a list, whatever container verl stores the field in."""
    rows = values.unbind() if isinstance(values, torch.Tensor) else values
    return [row.data if isinstance(row, NonTensorData) else row for row in rows]
