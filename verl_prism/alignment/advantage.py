"""From discriminator scores to the policy's advantages (paper, section 3.3), as pure functions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AlignmentAdvantage:
    """`values[G, N]`, and counts of groups that carry no gradient."""

    values: Tensor
    groups_without_valid: int
    groups_degenerate: int  # some valid members, whose scores do not differ in either view


def group_normalise(scores: Tensor, valid: Tensor, std_floor: float) -> Tensor:
    """(s - mean) / max(std, std_floor) over the valid members of each group; 0 for the others.

    Args:
        scores: [G, N], of any value where not valid.
        valid: [G, N] bool.
        std_floor: keeps rounding noise among almost equal scores from being blown up to unit size.
    """
    count = valid.sum(-1, keepdim=True)
    kept = torch.where(valid, scores, 0.0)
    mean = kept.sum(-1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(valid, kept - mean, 0.0)
    std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / std.clamp(min=std_floor)


def alignment_advantage(
    scores: Tensor, valid: Tensor, view_weights: Tensor, format_penalty: float, std_floor: float
) -> AlignmentAdvantage:
    """A = Σ_view w_view · normalised score; an invalid response gets -format_penalty and nothing else.

    Views are normalised apart, so each has its weight whatever the spread of its scores. A group without a valid
    response has nothing to be compared with and gets 0 throughout.

    Args:
        scores: [views, G, N].
        valid: [G, N] bool.
        view_weights: [views].
    """
    normalised = torch.stack([group_normalise(view, valid, std_floor) for view in scores])
    values = (view_weights[:, None, None] * normalised).sum(0)
    values = torch.where(valid, values, -format_penalty)
    some = valid.any(-1)
    flat = (normalised == 0).all(0).all(-1)
    return AlignmentAdvantage(
        torch.where(some[:, None], values, 0.0),
        groups_without_valid=int((~some).sum()),
        groups_degenerate=int((some & flat).sum()),
    )
