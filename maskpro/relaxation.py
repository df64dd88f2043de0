"""Relaxed masks: shares of a group's positions that sum to n, and their gradient.

Pure functions on `logits` `[G, M]`, as those of `maskpro.distribution` are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskpro.closed_forms import LONGEST_LEAD
from maskpro.columns import columns_of, in_blocks, keep_largest, wide
from maskpro.distribution import inclusion_gradient, inclusion_probabilities


def relaxed_inclusion(logits: Tensor, n: int) -> Tensor:
    """A relaxed mask of n positions a group, for any pattern, `[G, M]`. Each row sums to n.

    Where the n largest logits lead far, a row is the hard mask of these. For n of 1 or 2 the result is
    `inclusion_probabilities`. For larger n their sums over all orders would cost ten times a gradient. The result is then
    the inclusion probabilities of conditional Bernoulli sampling: p(mask) is proportional to exp(sum of the kept logits)
    (Chen, Dempster and Liu, Biometrika 1994). Their recursion over elementary symmetric polynomials is computed here in
    logarithms.
    """
    if n <= 2:
        return inclusion_probabilities(logits, n)
    return in_blocks(lambda block: _conditional_bernoulli(columns_of(block), n), wide(logits))


def relaxed_inclusion_gradient(logits: Tensor, n: int, values: Tensor) -> Tensor:
    """d/d logits of sum_i values_i * relaxed_inclusion_i, `[G, M]`, for fixed `values` `[G, M]`. Exact."""
    if n <= 2:
        return inclusion_gradient(logits, n, values)

    def slopes(block: Tensor, weights: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = columns_of(block).requires_grad_(True)
            (gradient,) = torch.autograd.grad((_conditional_bernoulli(leaf, n) * columns_of(weights)).sum(), leaf)
        return gradient

    return in_blocks(slopes, wide(logits), values)


def _conditional_bernoulli(columns: Tensor, n: int) -> Tensor:
    """Inclusion probabilities `[M, B]` of logits given as columns `[M, B]`."""
    # Logits relative to the threshold: one far above it is kept, one far below it is dropped, however far.
    with torch.no_grad():
        kept = keep_largest(columns.clone(), n)
        last_kept = columns.masked_fill(~kept, torch.inf).amin(dim=0)
        threshold = (last_kept + columns.masked_fill(kept, -torch.inf).amax(dim=0)) / 2
    columns = (columns - threshold).clamp(-LONGEST_LEAD, LONGEST_LEAD)
    before, after = _symmetric(list(columns), n), _symmetric(list(columns.flip(0)), n)
    size = len(columns)
    total = before[size][n]
    chances = []
    for place, logit in enumerate(columns):
        # The n - 1 others: k of those before this place, the rest of those after it.
        left, right = before[place], after[size - 1 - place]
        parts = [left[k] + right[n - 1 - k] for k in range(n) if k < len(left) and n - 1 - k < len(right)]
        chances.append((logit + torch.stack(parts).logsumexp(dim=0) - total).exp())
    return torch.stack(chances)


def _symmetric(logits: list[Tensor], n: int) -> list[list[Tensor]]:
    """Log elementary symmetric polynomials of exp(the first j logits), for each j, of degrees 0 to min(j, n)."""
    rows = [[torch.zeros_like(logits[0])]]
    for logit in logits:
        last = rows[-1]
        taken = [value + logit for value in last]  # products with this logit: one degree more
        rows.append(
            [last[0]]
            + [torch.logaddexp(last[degree], taken[degree - 1]) for degree in range(1, min(len(last), n + 1))]
            + ([taken[-1]] if len(last) <= n else [])
        )
    return rows
