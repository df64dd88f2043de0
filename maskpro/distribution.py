"""The mask distribution of groups of logits: N of M positions drawn without replacement from softmax(logits).

Pure functions on `logits` `[G, M]` and bool masks `[G, M]`; all arithmetic is in float32 (or float64 if given).
Source: MaskPro (Sun et al., arXiv 2506.12876), section 4; for 2:4, with p = softmax(logits) of a group and the kept pair
{a, b}: p(mask) = p_a p_b (1 / (1 - p_a) + 1 / (1 - p_b)). The upstream code clamps p to 1e-8 and adds 1e-8 to the
denominators, which makes its score wrong once one logit leads by about 10; here 1 - p_i is summed from the *other*
exponentials, so nothing cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskpro.errors import MaskproError
from maskpro.pattern import NMPattern

# exp(-80) keeps the sum of the other exponentials and its reciprocal inside float32.
_LARGEST_LEAD = 80.0
_MOST_CANDIDATES = 70


def check_supported(pattern: NMPattern) -> None:
    """Raise where the exact probabilities would need more than 70 candidate masks a group (4:8)."""
    if pattern.num_candidates > _MOST_CANDIDATES:
        raise MaskproError(
            f"pattern is {pattern}; allowed: patterns of at most {_MOST_CANDIDATES} masks a group, such as 2:4 or 4:8"
        )


def sample(logits: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw one mask per group, bool `[G, M]`.

    Gumbel top-n: the n largest of logits + Gumbel noise are a draw without replacement (Kool et al. 2019, section 2).
    """
    # -log(-log u) from uniforms: torch's `exponential_` is not vectorised on CPUs and takes five times as long.
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    return mode(logits - uniform.log_().neg_().log_(), n)


def mode(logits: Tensor, n: int) -> Tensor:
    """The n largest logits of each group, bool `[G, M]`; of equal ones the first is kept."""
    # Ranks by pairwise comparison: exact n even under ties, and several times faster than topk over 4 columns.
    columns = logits.t().contiguous()
    ranks = torch.zeros(columns.shape, dtype=torch.uint8, device=logits.device)
    for later in range(1, len(columns)):
        for earlier in range(later):
            earlier_wins = columns[earlier] >= columns[later]
            ranks[later] += earlier_wins
            ranks[earlier] += ~earlier_wins
    return (ranks < n).t().contiguous()


def log_prob(logits: Tensor, mask: Tensor) -> Tensor:
    """log p(mask | logits) of the *unordered* masks, `[G]`."""
    n = int(mask[0].sum())
    candidates = NMPattern(n, logits.shape[1]).candidates().to(mask.device)
    chosen = (mask[:, None, :] == candidates).all(dim=2)
    return candidate_log_probs(logits, n).masked_fill(~chosen, 0).sum(dim=1)


def score(logits: Tensor, mask: Tensor) -> Tensor:
    """d log p(mask) / d logits, `[G, M]`."""
    n = int(mask[0].sum())
    if n == 2:
        return _score_of_pairs(logits, mask)
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(log_prob(leaf, mask).sum(), leaf)
    return gradient


def inclusion_probabilities(logits: Tensor, n: int) -> Tensor:
    """Chance that each position is kept, `[G, M]`; each row sums to n."""
    if n == 2:
        p, rest = _softmax_and_rest(logits)
        return p * (1 + _others(p / rest))
    candidates = NMPattern(n, logits.shape[1]).candidates().to(logits)
    return candidate_log_probs(logits, n).exp() @ candidates


def inclusion_gradient(logits: Tensor, n: int, values: Tensor) -> Tensor:
    """d/d logits of sum_i values_i * inclusion_probabilities_i, `[G, M]`, for fixed `values` `[G, M]`."""
    if n == 2:
        p, rest = _softmax_and_rest(logits)
        # d/dp_i treating the p as independent, then the softmax's Jacobian; (1 - p_i) is `rest`, never a difference.
        d = values * (1 + _others(p / rest)) + _others(values * p) / rest / rest
        return p * (rest * d - _others(p * d))
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad((inclusion_probabilities(leaf, n) * values).sum(), leaf)
    return gradient


def candidate_log_probs(logits: Tensor, n: int) -> Tensor:
    """log p of every candidate mask, `[G, C(M, n)]`, in the order of `NMPattern.candidates`.

    Dynamic programme over the sets of positions drawn so far:
    p(A) = sum over the last draw i in A of p(A - i) exp(logit_i) / sum of exp(logits outside A - i).
    """
    size = logits.shape[1]
    check_supported(NMPattern(n, size))
    drawn: dict[frozenset[int], Tensor] = {frozenset(): torch.zeros_like(logits[:, 0])}
    for _ in range(n):
        terms: dict[frozenset[int], list[Tensor]] = {}
        for subset, log_p in drawn.items():
            outside = [i for i in range(size) if i not in subset]
            log_left = logits[:, outside].logsumexp(dim=1)
            for i in outside:
                terms.setdefault(subset | {i}, []).append(log_p + logits[:, i] - log_left)
        drawn = {subset: torch.stack(parts).logsumexp(dim=0) for subset, parts in terms.items()}
    ordered = [drawn[frozenset(row.nonzero().flatten().tolist())] for row in NMPattern(n, size).candidates()]
    return torch.stack(ordered, dim=1)


def _others(values: Tensor) -> Tensor:
    """Sum of the other entries of each row; exact, where total minus own would cancel."""
    size = values.shape[1]
    return values @ (1 - torch.eye(size, dtype=values.dtype, device=values.device))


def _softmax_and_rest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """p = softmax(logits) and 1 - p."""
    exponentials = (logits - logits.amax(dim=1, keepdim=True)).clamp_(min=-_LARGEST_LEAD).exp_()
    total = exponentials.sum(dim=1, keepdim=True)
    return exponentials / total, _others(exponentials) / total


def _score_of_pairs(logits: Tensor, mask: Tensor) -> Tensor:
    """The score for n = 2: with kept {a, b} and h = 1/(1-p_a) + 1/(1-p_b), log p = log p_a + log p_b + log h, so
    score_k = mask_k - p_k - sum over kept i != k of (1/(1-p_i) / h) * p_k / (1-p_i).
    """
    p, rest = _softmax_and_rest(logits)
    inverse = mask / rest
    weight = inverse / inverse.sum(dim=1, keepdim=True)
    return mask.to(p.dtype) - p - p * _others(weight / rest)
