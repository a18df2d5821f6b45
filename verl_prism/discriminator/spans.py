"""From the text of a response to the token ids of its two spans. All spans are tokenized here.

A span is the caption or the reasoning of a response. Its text is tokenized on its own and followed
by one terminal token. Identical text of teacher and policy therefore gives identical tokens,
positions and scores.
"""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from verl_prism.response import Response, View

VIEWS = (View.PERCEPTION, View.REASONING)
SpanIds = tuple[int, ...]  # the tokens of a span, then the terminal token
Spans = Mapping[View, SpanIds]


def view_limits(max_perception_tokens: int, max_reasoning_tokens: int) -> dict[View, int]:
    """Return the longest span that is scored, in tokens without the terminal token, per view."""
    return {View.PERCEPTION: max_perception_tokens, View.REASONING: max_reasoning_tokens}


def span_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> SpanIds:
    """Tokenize one span and append the terminal token.

    A special token spelled out in the text is tokenized as plain text.
    """
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return (*ids, tokenizer.eos_token_id)


def tokenize_spans(response: Response, tokenizer: PreTrainedTokenizerBase) -> dict[View, SpanIds]:
    """Tokenize both spans of a valid response."""
    return {view: span_ids(response.view_text(view), tokenizer) for view in View}


def scored_spans(
    response: Response, tokenizer: PreTrainedTokenizerBase, limits: Mapping[View, int]
) -> tuple[str | None, Spans | None]:
    """Return the fault of a response, or its spans. A span over its limit is a fault."""
    if response.fault is not None:
        return response.fault.name.lower(), None
    spans = tokenize_spans(response, tokenizer)
    for view, ids in spans.items():
        if len(ids) - 1 > limits[view]:
            return f"{view.value}_too_long", None
    return None, spans
