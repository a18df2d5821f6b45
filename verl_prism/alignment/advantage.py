"""From discriminator scores to the policy's advantages (paper, section 3.3), as pure functions.

Shapes: V views, G groups, N responses per group.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REFERENCE_EPSILON = 1e-6


@dataclass(frozen=True)
class AlignmentAdvantage:
    """Advantages of a step's responses, and counts of groups that carry no information."""

    values: Tensor  # [G, N]
    terms: (
        Tensor  # [V, G, N] weight of the view · normalized score; sums to a valid response's value
    )
    groups_without_valid: int
    groups_degenerate: int  # have valid responses, but their scores are equal in every view


def normalize_groups(scores: Tensor, valid: Tensor, std_floor: float) -> Tensor:
    """Return (s - mean) / max(std, std_floor) over each group's valid responses; 0 for the others.

    Args:
        scores: [..., G, N]; entries that are not valid may have any value.
        valid: [G, N] bool.
        std_floor: smallest divisor. It keeps rounding noise between nearly equal scores from being
            amplified to unit size.
    """
    count = valid.sum(-1, keepdim=True)
    lowest = torch.where(valid, scores, torch.inf).amin(-1, keepdim=True)
    # Relative to the lowest score, equal scores have a mean of exactly 0.
    shifted = torch.where(valid, scores - lowest, 0.0)
    mean = shifted.sum(-1, keepdim=True) / count.clamp(min=1)
    centered = torch.where(valid, shifted - mean, 0.0)
    variance = centered.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return centered / variance.sqrt().clamp(min=std_floor)


def alignment_advantage(
    scores: Tensor, valid: Tensor, view_weights: Tensor, format_penalty: float, std_floor: float
) -> AlignmentAdvantage:
    """Return A = Σ_view w_view · normalized score, and -format_penalty for an invalid response.

    Each view is normalized separately, so its weight does not depend on the spread of its scores.
    A group without a valid response offers no comparison: all its advantages are 0.

    Args:
        scores: [V, G, N]; entries that are not valid may have any value.
        valid: [G, N] bool.
        view_weights: [V].
    """
    terms = view_weights[:, None, None] * normalize_groups(scores, valid, std_floor)
    values = torch.where(valid, terms.sum(0), -format_penalty)
    values = torch.where(valid.any(-1, keepdim=True), values, 0.0)
    return _with_counts(values, terms, scores, valid)


def normalize_groups_reference(scores: Tensor, valid: Tensor) -> Tensor:
    """Return (s - mean) / (std + 1e-6) over whole groups, as the published code does.

    An invalid response counts with the group's lowest valid score minus 1, or with -1 if the group
    has no valid response. A group of one is not normalized (mean 0, std 1).

    Args:
        scores: [..., G, N]; entries that are not valid may have any value.
        valid: [G, N] bool.
    """
    lowest = torch.where(valid, scores, torch.inf).amin(-1, keepdim=True)
    substitute = torch.where(valid.any(-1, keepdim=True), lowest - 1, -1.0)
    filled = torch.where(valid, scores, substitute)
    if filled.shape[-1] == 1:
        return filled / (1 + REFERENCE_EPSILON)
    centered = filled - filled.mean(-1, keepdim=True)
    return centered / (filled.std(-1, keepdim=True) + REFERENCE_EPSILON)


def reference_advantage(
    scores: Tensor, valid: Tensor, view_weights: Tensor, format_penalty: float
) -> AlignmentAdvantage:
    """Return A = Σ_view w_view · normalized score - format_penalty · invalid, for comparison.

    This is the rule of the published code. An invalid response pays twice, with its substituted
    score and with the penalty, and it widens the spread of its group. A group without a valid
    response gets -format_penalty throughout.

    Args:
        scores: [V, G, N]; entries that are not valid may have any value.
        valid: [G, N] bool.
        view_weights: [V].
    """
    terms = view_weights[:, None, None] * normalize_groups_reference(scores, valid)
    values = terms.sum(0) - format_penalty * ~valid
    return _with_counts(values, terms, scores, valid)


def _with_counts(
    values: Tensor, terms: Tensor, scores: Tensor, valid: Tensor
) -> AlignmentAdvantage:
    """Count the groups without a valid response and those whose valid scores are all equal."""
    has_valid = valid.any(-1)
    lowest = torch.where(valid, scores, torch.inf).amin(-1)
    highest = torch.where(valid, scores, -torch.inf).amax(-1)
    degenerate = has_valid & (lowest == highest).all(0)
    return AlignmentAdvantage(values, terms, int((~has_valid).sum()), int(degenerate.sum()))


def spread_over_tokens(
    advantage: AlignmentAdvantage,
    lengths: Sequence[int],
    ranges: Sequence[Sequence[tuple[int, int]]] | None,
) -> list[Tensor]:
    """Return advantages[length] over the tokens of each of the R = G · N responses.

    Every token gets its response's value. If ranges are given, a token of a view's span gets only
    the term of that view. White space between the blocks and the end of the turn belong to no span.
    An invalid response has empty ranges, so all its tokens keep the response's value.

    Args:
        lengths: [R] number of tokens of each response.
        ranges: [R, V] tokens [start, end) of each view's span.
    """
    values = advantage.values.flatten().tolist()
    spread = [torch.full((length,), value) for value, length in zip(values, lengths, strict=True)]
    if ranges is None:
        return spread
    terms = advantage.terms.flatten(1).T.tolist()
    for tokens, view_terms, view_ranges in zip(spread, terms, ranges, strict=True):
        for term, (start, end) in zip(view_terms, view_ranges, strict=True):
            tokens[start:end] = term
    return spread
