"""The mask distribution for n = 2 in closed form: inclusion probabilities, score, gradient. All are columns `[M, B]`.

`maskpro.distribution` explains the distribution and says when these are used; `maskpro.kernels` computes the same on a GPU.
"""

from __future__ import annotations

from math import exp

import torch
from torch import Tensor

from maskpro.columns import sums_of_others

# exp of +-80 is finite and not zero in float32.
LARGEST_LEAD = 80.0
# Longest lead of a group's largest logit over the second one in a closed form. A longer lead changes probabilities and
# gradients by exp(-40), which is less than the rounding of a float64. A logit 80 below the largest is 40 below the second.
LONGEST_LEAD = 40.0


def inclusion_of_pairs(logits: Tensor) -> Tensor:
    """Chance that each position is kept."""
    p, rest = _softmax_and_rest(logits)
    return p * (1 + sums_of_others(p / rest))


def inclusion_gradient_of_pairs(logits: Tensor, values: Tensor) -> Tensor:
    """d/d logits of sum_i values_i * inclusion_of_pairs_i: d/dp_i, the p taken as independent, then the softmax's Jacobian.

    (1 - p_i) is `rest`, never a difference.
    """
    p, rest = _softmax_and_rest(logits)
    d = sums_of_others(p / rest).add_(1).mul_(values).add_(sums_of_others(values * p).div_(rest).div_(rest))
    return (rest.mul_(d) - sums_of_others(p * d)).mul_(p)


def score_of_pairs(logits: Tensor, mask: Tensor) -> Tensor:
    """The score for n = 2: with kept {a, b} and h = 1/(1-p_a) + 1/(1-p_b), log p = log p_a + log p_b + log h, so
    score_k = mask_k - p_k - sum over kept i != k of (1/(1-p_i) / h) * p_k / (1-p_i).
    """
    p, rest = _softmax_and_rest(logits)
    kept = mask.to(p.dtype)
    inverse = kept / rest
    weight = inverse.div_(inverse.sum(dim=0))
    return kept.sub_(p).sub_(sums_of_others(weight.div_(rest)).mul_(p))


def _softmax_and_rest(columns: Tensor) -> tuple[Tensor, Tensor]:
    """p = softmax(logits) and 1 - p, as columns `[M, B]`; leads longer than `LONGEST_LEAD` are cut to it.

    A longer lead changes results computed from p by less than rounding. But 1 - p has to keep the differences between the
    other positions.
    """
    # A GPU always cuts, as looking for long leads first would make the CPU wait. A CPU cuts only where it finds some.
    exponentials, others = _exponentials(_with_short_leads(columns) if columns.is_cuda else columns)
    if not columns.is_cuda and others.amin() < exp(-LONGEST_LEAD):
        exponentials, others = _exponentials(_with_short_leads(columns))
    total = exponentials.sum(dim=0)
    return exponentials / total, others.div_(total)


def _exponentials(columns: Tensor) -> tuple[Tensor, Tensor]:
    """exp(logits - the largest), and for each the sum of the others."""
    exponentials = (columns - columns.amax(dim=0)).clamp_(min=-LARGEST_LEAD).exp_()
    return exponentials, sums_of_others(exponentials)


def _with_short_leads(columns: Tensor) -> Tensor:
    """The logits, with each group's lead over its second logit cut to `LONGEST_LEAD`."""
    top, second = columns[0], torch.full_like(columns[0], -torch.inf)
    for column in columns[1:]:
        second = torch.maximum(second, torch.minimum(top, column))
        top = torch.maximum(top, column)
    return torch.minimum(columns, second + LONGEST_LEAD)
