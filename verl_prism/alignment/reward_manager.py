"""The reward manager of stage 2: parses and tokenizes each rollout once, for the discriminator.

The scores come later, from the worker that holds the discriminator (see `trainer.py`). No gold
answer is read here.
"""

from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from verl_prism.alignment.groups import ids_key
from verl_prism.config import parse_prism
from verl_prism.discriminator.spans import scored_spans, view_limits
from verl_prism.response import View
from verl_prism.token_spans import TokenSpanFinder


class DiscriminatorRewardManager(RewardManagerBase):
    """Leaves the spans of a valid response, or its fault, in `reward_extra_info`."""

    def __init__(
        self, config: Any, tokenizer: PreTrainedTokenizerBase, compute_score: Any, **_: Any
    ):
        super().__init__(config, tokenizer, compute_score)
        section = parse_prism(config.actor_rollout_ref.prism).discriminator
        self._limits = view_limits(section.max_perception_tokens, section.max_reasoning_tokens)
        self._finder = TokenSpanFinder(tokenizer)
        self._span_tokenizer = AutoTokenizer.from_pretrained(section.path)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Parse one rollout.

        `reward_score` is 1 for a valid response and 0 for an invalid one. The trainer replaces it
        by the advantage.
        """
        item = data[-1]
        responses = item.batch["responses"]
        length = int(item.batch["attention_mask"][-responses.shape[-1] :].sum())
        info = self.spans(responses[:length].tolist())
        return {"reward_score": float(info["fault"] == ""), "reward_extra_info": info}

    def spans(self, ids: Sequence[int]) -> dict[str, Any]:
        """Return the fault of a response ("" if valid) and, per view, its token ids and its range.

        The ids are those of the discriminator's tokenizer. The range [start, end) is in the
        response's own tokens. Both are empty if the response is invalid.
        """
        found = self._finder.find(ids)
        fault, spans = scored_spans(found.response, self._span_tokenizer, self._limits)
        info: dict[str, Any] = {"fault": fault or ""}
        for view in View:
            start, end = found.ranges[view] if spans else (0, 0)
            info[ids_key(view)] = list(spans[view]) if spans else []
            info[f"{view.value}_start"] = start
            info[f"{view.value}_end"] = end
        return info
