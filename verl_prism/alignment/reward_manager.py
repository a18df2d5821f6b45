"""The reward manager of stage 2: parses each rollout, once, for the discriminator to score.

The score itself comes after sampling, from the worker that holds the discriminator (see `trainer.py`); no gold answer
is read here.
"""

from collections.abc import Sequence
from typing import Any

from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from verl_prism.config import parse_prism
from verl_prism.discriminator.pairs import scored_spans, view_limits
from verl_prism.response import View
from verl_prism.token_spans import TokenSpanFinder


class DiscriminatorRewardManager(RewardManagerBase):
    """Leaves the two spans of a valid response, or its fault, in `reward_extra_info`."""

    def __init__(self, config, tokenizer, compute_score, **_):
        super().__init__(config, tokenizer, compute_score)
        self._limits = view_limits(parse_prism(config.actor_rollout_ref.prism).discriminator)
        self._finder = TokenSpanFinder(tokenizer)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """`reward_score` is 1 for a valid response, else 0, until the trainer puts the advantage in its place."""
        item = data[-1]
        responses = item.batch["responses"]
        length = int(item.batch["attention_mask"][-responses.shape[-1] :].sum())
        info = self.spans(responses[:length].tolist())
        return {"reward_score": float(info["fault"] == ""), "reward_extra_info": info}

    def spans(self, ids: Sequence[int]) -> dict[str, str | int]:
        """`fault` ("" if valid) and, per view, its text and its tokens [start, end) (empty if not)."""
        found = self._finder.find(ids)
        fault, spans = scored_spans(found.response, self.tokenizer, self._limits)
        info: dict[str, str | int] = {"fault": fault or ""}
        for view in View:
            start, end = found.ranges[view] if spans else (0, 0)
            info |= {
                view.value: spans[view] if spans else "",
                f"{view.value}_start": start,
                f"{view.value}_end": end,
            }
        return info
