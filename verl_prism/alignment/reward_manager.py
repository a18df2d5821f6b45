"""The reward manager of stage 2: parses and tokenizes each rollout once, for the discriminator.

The scores come later, from the worker that holds the discriminator (see `trainer.py`). A gold
answer is read only if the advantage has a term for accuracy (`prism.align.accuracy_weight`).
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from verl_prism.alignment.groups import ACCURACY, ids_key
from verl_prism.config import parse_prism
from verl_prism.discriminator.spans import scored_spans, view_limits
from verl_prism.response import Response, View
from verl_prism.rewards.own import own_score
from verl_prism.rewards.score import score_response
from verl_prism.token_spans import TokenSpanFinder, TokenSpans


class DiscriminatorRewardManager(RewardManagerBase):
    """Leaves the spans of a valid response, or its fault, in `reward_extra_info`."""

    def __init__(
        self, config: Any, tokenizer: PreTrainedTokenizerBase, compute_score: Any, **_: Any
    ):
        super().__init__(config, tokenizer, compute_score)
        prism = parse_prism(config.actor_rollout_ref.prism)
        section = prism.discriminator
        self._graded = prism.align.accuracy_weight > 0
        self._function = prism.reward.function
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
        found = self._finder.find(responses[:length].tolist())
        info = self._info(found)
        if self._graded:
            row = item.non_tensor_batch
            info[ACCURACY] = await asyncio.to_thread(self._accuracy, found.response, row)
        return {"reward_score": float(info["fault"] == ""), "reward_extra_info": info}

    def _accuracy(self, response: Response, row: Mapping[str, Any]) -> float:
        """Return whether the answer is right, 0 if the format is invalid."""
        gold = row["reward_model"]["ground_truth"]
        facts = row.get("extra_info")
        if self._function is None:
            score = score_response(response, gold, facts)
        else:
            score = own_score(self._function, row["data_source"], response, gold, facts)
        return float(score[ACCURACY])

    def spans(self, ids: Sequence[int]) -> dict[str, Any]:
        """Return the fault of a response ("" if valid) and, per view, its token ids and its range.

        The ids are those of the discriminator's tokenizer. The range [start, end) is in the
        response's own tokens. Both are empty if the response is invalid.
        """
        return self._info(self._finder.find(ids))

    def _info(self, found: TokenSpans) -> dict[str, Any]:
        fault, spans = scored_spans(found.response, self._span_tokenizer, self._limits)
        info: dict[str, Any] = {"fault": fault or ""}
        for view in View:
            start, end = found.ranges[view] if spans else (0, 0)
            info[ids_key(view)] = list(spans[view]) if spans else []
            info[f"{view.value}_start"] = start
            info[f"{view.value}_end"] = end
        return info
