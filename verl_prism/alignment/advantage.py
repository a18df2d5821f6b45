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
    terms: Tensor  # [V, G, N] weight of the view · normalized score
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
    centered = _centered(scores, valid)
    return centered / _spread(centered, valid).clamp(min=std_floor)


def _centered(scores: Tensor, valid: Tensor) -> Tensor:
    """Return s - mean over each group's valid responses; 0 for the others."""
    count = valid.sum(-1, keepdim=True)
    lowest = torch.where(valid, scores, torch.inf).amin(-1, keepdim=True)
    # Relative to the lowest score, equal scores have a mean of exactly 0.
    shifted = torch.where(valid, scores - lowest, 0.0)
    mean = shifted.sum(-1, keepdim=True) / count.clamp(min=1)
    return torch.where(valid, shifted - mean, 0.0)


def _spread(centered: Tensor, valid: Tensor) -> Tensor:
    """Return the standard deviation [..., G, 1] of each group's valid scores."""
    count = valid.sum(-1, keepdim=True)
    variance = centered.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    return variance.sqrt()


def gaussian_quantiles(scores: Tensor, valid: Tensor, std_floor: float, power: float) -> Tensor:
    """Return sign(q) · |q|^power, where q are the Gaussian quantiles of the ranks of valid scores.

    The score with rank r of M has the quantile of (r - 1/2) / M. Equal scores share their mean
    rank; the group's mean, which is then not 0, is subtracted. The result depends only on the order
    within a group, not on how far its scores are apart (arXiv 2609.39757). A group whose standard
    deviation is below `std_floor` has no order: 0.

    Args:
        scores: [..., G, N]; entries that are not valid may have any value.
        valid: [G, N] bool.
        power: 1 gives the quantiles; above 1 makes the best and the worst count more.
    """
    centered = _centered(scores, valid)
    below = (centered[..., None, :] < centered[..., :, None]) & valid[..., None, :]
    equal = (centered[..., None, :] == centered[..., :, None]) & valid[..., None, :]
    middle = below.sum(-1) + equal.sum(-1) / 2  # of a score's ranks, counted from 0
    count = valid.sum(-1, keepdim=True).clamp(min=1)
    quantiles = torch.special.ndtri(torch.where(valid, middle / count, 0.5))
    ordered = valid & (_spread(centered, valid) >= std_floor)
    powers = quantiles.sign() * quantiles.abs() ** power
    return torch.where(ordered, _centered(powers, valid), 0.0)


def combined_terms(scores: Tensor, valid: Tensor, view_weights: Tensor, std_floor: float) -> Tensor:
    """Return terms[V, G, N] that add up to the z-score of Σ_view w_view · score (paper, eq. 3).

    A view whose scores spread more has a larger share of the sum than its weight says.

    Args:
        scores: [V, G, N]; entries that are not valid may have any value.
        valid: [G, N] bool.
        view_weights: [V].
        std_floor: as in `normalize_groups`.
    """
    centered = view_weights[:, None, None] * _centered(scores, valid)
    return centered / _spread(centered.sum(0), valid).clamp(min=std_floor)


def alignment_advantage(
    terms: Tensor,
    scores: Tensor,
    valid: Tensor,
    format_penalty: float,
    common: Tensor | None = None,
) -> AlignmentAdvantage:
    """Return A = Σ_view term + common, and -format_penalty for an invalid response.

    A group without a valid response offers no comparison: all its advantages are 0.

    Args:
        terms: [V, G, N] the weighted normalized scores. Normalizing each view by itself, with
            `normalize_groups` or `gaussian_quantiles`, makes its weight independent of the spread
            of its scores; `combined_terms` does not.
        scores: [V, G, N]; entries that are not valid may have any value.
        valid: [G, N] bool.
        common: [G, N] a term that belongs to no view; None: 0.
    """
    total = terms.sum(0) if common is None else terms.sum(0) + common
    values = torch.where(valid, total, -format_penalty)
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


def small_spreads(scores: Tensor, valid: Tensor, share: float) -> Tensor:
    """Return [V], the share of groups in which the responses' scores hardly differ.

    They hardly differ if their standard deviation is below `share` times that of all valid scores
    of the step. The Bradley-Terry loss prefers such groups (arXiv 2609.39757), and normalization
    then amplifies noise. Groups with fewer than two valid responses are left out.

    Args:
        scores: [V, G, N]; entries that are not valid may have any value.
        valid: [G, N] bool.
    """
    compared = valid.sum(-1) > 1
    within = _spread(_centered(scores, valid), valid)[:, compared, 0]
    overall = scores[:, valid].std(-1, keepdim=True)
    return (within < share * overall).float().mean(-1)


def spread_over_tokens(
    advantage: AlignmentAdvantage,
    lengths: Sequence[int],
    ranges: Sequence[Sequence[tuple[int, int]]] | None,
) -> list[Tensor]:
    """Return advantages[length] over the tokens of each of the R = G · N responses.

    Every token gets its response's value. If ranges are given, a token of a view's span does not
    get the terms of the other views. White space between the blocks and the end of the turn belong
    to no span. An invalid response has empty ranges, so all its tokens keep the response's value.

    Args:
        lengths: [R] number of tokens of each response.
        ranges: [R, V] tokens [start, end) of each view's span.
    """
    values = advantage.values.flatten().tolist()
    spread = [torch.full((length,), value) for value, length in zip(values, lengths, strict=True)]
    if ranges is None:
        return spread
    terms = advantage.terms.flatten(1).T.tolist()
    for value, tokens, own_terms, own_ranges in zip(values, spread, terms, ranges, strict=True):
        for term, (start, end) in zip(own_terms, own_ranges, strict=True):
            tokens[start:end] = value - (sum(own_terms) - term)
    return spread
