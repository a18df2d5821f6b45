"""From discriminator scores to the policy's advantages (paper, section 3.3), as pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REFERENCE_EPSILON = 1e-6


@dataclass(frozen=True)
class AlignmentAdvantage:
    """A response's advantage, each view's term of it, and counts of groups whose scores tell the policy nothing."""

    values: Tensor  # [G, N]
    terms: Tensor  # [views, G, N] w_view · normalised score; they sum to the value where the response is valid
    groups_without_valid: int
    groups_degenerate: int  # some valid members, whose scores do not differ in either view


def group_normalise(scores: Tensor, valid: Tensor, std_floor: float) -> Tensor:
    """(s - mean) / max(std, std_floor) over the valid members of each group; 0 for the others.

    Args:
        scores: [..., G, N], of any value where not valid.
        valid: [G, N] bool.
        std_floor: keeps rounding noise among almost equal scores from being blown up to unit size.
    """
    count = valid.sum(-1, keepdim=True)
    lowest = torch.where(valid, scores, torch.inf).amin(-1, keepdim=True)
    raised = torch.where(
        valid, scores - lowest, 0.0
    )  # exactly 0 where all scores are equal, as a mean need not be
    centred = torch.where(valid, raised - raised.sum(-1, keepdim=True) / count.clamp(min=1), 0.0)
    std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / std.clamp(min=std_floor)


def alignment_advantage(
    scores: Tensor, valid: Tensor, view_weights: Tensor, format_penalty: float, std_floor: float
) -> AlignmentAdvantage:
    """A = Σ_view w_view · normalised score; an invalid response gets -format_penalty and nothing else.

    Views are normalised apart, so each has its weight whatever the spread of its scores. A group without a valid
    response has nothing to be compared with and gets 0 throughout.

    Args:
        scores: [views, G, N], of any value where not valid.
        valid: [G, N] bool.
        view_weights: [views].
    """
    terms = view_weights[:, None, None] * group_normalise(scores, valid, std_floor)
    values = torch.where(valid, terms.sum(0), -format_penalty)
    values = torch.where(valid.any(-1, keepdim=True), values, 0.0)
    return AlignmentAdvantage(values, terms, *_count_uninformative(scores, valid))


def reference_normalise(scores: Tensor, valid: Tensor) -> Tensor:
    """(s - mean) / (std + 1e-6) over whole groups, in which an invalid response has the lowest valid score less 1.

    It has -1 where no response of the group is valid. A group of one is not normalised: mean 0, std 1.

    Args:
        scores: [..., G, N], of any value where not valid.
        valid: [G, N] bool.
    """
    lowest = torch.where(valid, scores, torch.inf).amin(-1, keepdim=True)
    substitute = torch.where(valid.any(-1, keepdim=True), lowest - 1, -1.0)
    filled = torch.where(valid, scores, substitute)
    if filled.shape[-1] == 1:
        return filled / (1 + REFERENCE_EPSILON)
    return (filled - filled.mean(-1, keepdim=True)) / (
        filled.std(-1, keepdim=True) + REFERENCE_EPSILON
    )


def reference_advantage(
    scores: Tensor, valid: Tensor, view_weights: Tensor, format_penalty: float
) -> AlignmentAdvantage:
    """The rule of the published code, for comparison: A = Σ_view w_view · normalised score - format_penalty · invalid.

    An invalid response pays twice, by its substituted score and by the penalty, and spreads the group's scores; a
    group without a valid response gets -format_penalty throughout.

    Args:
        scores: [views, G, N], of any value where not valid.
        valid: [G, N] bool.
        view_weights: [views].
    """
    terms = view_weights[:, None, None] * reference_normalise(scores, valid)
    return AlignmentAdvantage(
        terms.sum(0) - format_penalty * ~valid, terms, *_count_uninformative(scores, valid)
    )


def _count_uninformative(scores: Tensor, valid: Tensor) -> tuple[int, int]:
    """Groups without a valid response, and groups whose valid responses have all the same scores[views, G, N]."""
    some = valid.any(-1)
    lowest = torch.where(valid, scores, torch.inf).amin(-1)
    highest = torch.where(valid, scores, -torch.inf).amax(-1)
    return int((~some).sum()), int((some & (lowest == highest).all(0)).sum())


def spread_over_tokens(
    advantage: AlignmentAdvantage,
    lengths: Sequence[int],
    ranges: Sequence[Sequence[tuple[int, int]]] | None,
) -> list[Tensor]:
    """Advantages[length] of the tokens of each of the R = G · N responses.

    Every token gets its response's value; but where ranges are given, a token of a view's span gets that view's term
    alone. White space between the blocks and the end of the turn belong to no span, and neither does anything in an
    invalid response, whose ranges are empty.

    Args:
        lengths: [R] tokens of each response.
        ranges: [R, views] tokens [start, end) of each view's span.
    """
    values = advantage.values.flatten().tolist()
    spread = [torch.full((length,), value) for value, length in zip(values, lengths, strict=True)]
    if ranges is not None:
        terms = advantage.terms.flatten(1).T.tolist()
        for tokens, view_terms, view_ranges in zip(spread, terms, ranges, strict=True):
            for term, (start, end) in zip(view_terms, view_ranges, strict=True):
                tokens[start:end] = term
    return spread
