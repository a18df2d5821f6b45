"""Samples of a step of verl's PPO trainer, read from the TransferQueue."""

from collections.abc import Mapping
from typing import Any

import transfer_queue as tq
from torch import Tensor
from transfer_queue import KVBatchMeta
from transformers import PreTrainedTokenizerBase

from verl_prism.report.step_samples import RESPONSE, ROW, STEP, evenly
from verl_prism.trainer.transfer import column

FIELDS = ("row", "responses", "response_mask", "advantages", "extra_fields")
SHOWN = ("acc", "format", "fault", "score")  # of what the reward manager leaves

Marks = Mapping[str, Mapping[str, Any]]  # further marks of rollouts, by key


def step_samples(
    step: int,
    batch: KVBatchMeta,
    count: int,
    tokenizer: PreTrainedTokenizerBase,
    marks: Marks,
) -> list[dict[str, Any]]:
    """Return at most `count` rollouts of a step, with the marks of those that have any."""
    keys = [
        key
        for key, tag in zip(batch.keys, batch.tags, strict=True)
        if not tag.get("is_padding", False)
    ]
    chosen = evenly(keys, count)
    if not chosen:
        return []
    data = tq.kv_batch_get(keys=chosen, partition_id=batch.partition_id, select_fields=list(FIELDS))
    rows = zip(chosen, *(column(data[field]) for field in FIELDS), strict=True)
    samples = []
    for key, row, ids, mask, advantages, extra in rows:
        info = extra.get("reward_extra_info", {})  # verl sets it only if there is a reward
        samples.append(
            {
                STEP: step,
                ROW: int(row),
                RESPONSE: tokenizer.decode(ids, skip_special_tokens=True),
                "tokens": len(ids),
                "advantage": _mean(advantages, mask),
                **{name: info[name] for name in SHOWN if name in info},
                **marks.get(key, {}),
            }
        )
    return samples


def _mean(values: Tensor, mask: Tensor) -> float:
    """Return the mean over the tokens that the policy wrote."""
    mask = mask.bool()
    return values[mask].mean().item()
