"""The mask distribution of groups of logits: N of M positions drawn without replacement from softmax(logits).

Pure functions on `logits` `[G, M]` and bool masks `[G, M]`. Arithmetic and results are in float32, or float64 for float64
logits; half precision is widened first.
Source: MaskPro (Sun et al., arXiv 2506.12876), section 4; for 2:4, with p = softmax(logits) of a group and the kept pair
{a, b}: p(mask) = p_a p_b (1 / (1 - p_a) + 1 / (1 - p_b)). The upstream code clamps p to 1e-8 and adds 1e-8 to the
denominators, so its score is wrong once one logit leads by about 10. Here 1 - p_i is summed from the *other* exponentials,
so nothing cancels.
"""

from __future__ import annotations

import warnings
from functools import cache
from itertools import combinations
from math import comb
from types import ModuleType

import torch
from torch import Tensor

from maskpro.closed_forms import LARGEST_LEAD, inclusion_gradient_of_pairs, inclusion_of_pairs, score_of_pairs
from maskpro.columns import columns_of, in_blocks, keep_largest, wide
from maskpro.errors import MaskproError
from maskpro.pattern import NMPattern

# Largest number of masks a group may have for sums over all of them: 4:8 has 70, 8:16 has 12,870.
MOST_CANDIDATES = 70
# Number of terms that `score` and `entropy` hold at a time (64 MiB in float32).
_LARGEST_BLOCK = 2**24


def check_enumerable(pattern: NMPattern) -> None:
    """Raise where a sum over all masks of a group would have more than 70 terms (4:8)."""
    if pattern.num_candidates > MOST_CANDIDATES:
        raise MaskproError(
            f"pattern is {pattern}, which has {pattern.num_candidates:,} masks a group; allowed here: at most "
            f"{MOST_CANDIDATES}, such as 2:4 or 4:8"
        )


def perturb(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Logits plus standard Gumbel noise, `[G, M]`; the n largest of a row are a mask drawn from the distribution."""
    logits = wide(logits)
    # -log(-log u) from uniforms: torch's `exponential_` is not vectorised on CPUs and takes five times as long.
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    # A float32 uniform is 0 once in 2^24 draws; its noise would be -inf. Half the next value stands for all below it.
    uniform.clamp_(min=torch.finfo(logits.dtype).eps / 4)
    return logits - uniform.log_().neg_().log_()


def sample(logits: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw one mask per group, bool `[G, M]`.

    Gumbel top-n: the n largest of logits + Gumbel noise are a draw without replacement (Kool et al. 2019, section 2).
    """
    if kernels := _kernels_for(logits):
        # -log of a standard exponential value has Gumbel's distribution. A GPU draws these as fast as uniform values.
        return kernels.sample(logits, n, torch.empty_like(logits).exponential_(generator=generator))  # type: ignore[no-any-return]
    return in_blocks(lambda block: keep_largest(columns_of(perturb(block, generator)), n), logits)


def mode(logits: Tensor, n: int) -> Tensor:
    """The n largest logits of each group, bool `[G, M]`; of equal ones the first is kept. NaN counts as minus infinity."""
    return in_blocks(lambda block: keep_largest(columns_of(block), n), logits)


def log_prob(logits: Tensor, mask: Tensor) -> Tensor:
    """log p(mask | logits) of the *unordered* masks, `[G]`; every row of `mask` keeps equally many positions.

    Dynamic programme over the 2^n sets S of kept positions drawn so far, instead of n! orders:
    g(empty) = 1, g(S) = sum over the last draw i in S of g(S - i) * exp(logit_i) / sum of exp(logits outside S - i), and
    p(mask) = g(mask). It is computed in logarithms of probabilities, so nothing cancels however far the logits lie apart.
    """
    logits = wide(logits)
    n = int(mask[0].sum())
    # Columns [M, G] from here on: operations over a group's few positions then work on whole vectors.
    outside = logits.masked_fill(mask, -torch.inf).t()
    # Values relative to the largest of them, which adds no rounding; -inf where the mask keeps everything.
    largest = outside.amax(dim=0).detach().clamp(min=torch.finfo(logits.dtype).min)
    dropped = (outside - largest).logsumexp(dim=0)
    kept = logits[mask].view(-1, n).t() - largest
    log_g = torch.zeros_like(dropped)[None]
    for drawn in range(n):
        gone, (origins, last) = _draws(n, drawn)
        choices = kept.masked_fill(gone.to(mask.device)[:, :, None], -torch.inf)
        log_draw = torch.cat([choices, dropped.expand(len(gone), 1, -1)], dim=1).log_softmax(dim=1)
        log_g = (log_g[origins] + log_draw[origins, last]).logsumexp(dim=1)
    return log_g[0]


def score(logits: Tensor, mask: Tensor, n: int | None = None, factor: Tensor | None = None) -> Tensor:
    """d log p(mask) / d logits, `[G, M]`, times a factor (a scalar; default 1).

    `n` positions are kept in every row. By default they are counted, which makes the CPU wait for a GPU.
    """
    logits = wide(logits)
    if n is None:
        n = int(mask[0].sum())
    if n == 2 and (kernels := _kernels_for(logits)):
        return kernels.score_of_pairs(logits, mask, factor)  # type: ignore[no-any-return]
    if n == 2:
        result = in_blocks(lambda *blocks: score_of_pairs(*map(columns_of, blocks)), logits, mask)
    else:
        result = _score(logits, mask, n)
    return result if factor is None else result.mul_(factor)


def _score(logits: Tensor, mask: Tensor, n: int) -> Tensor:
    size = max(1, _LARGEST_BLOCK // _terms_of_a_mask(n))
    parts: list[Tensor] = []
    for rows, masks in zip(logits.split(size), mask.split(size), strict=True):
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_(True)
            parts.append(*torch.autograd.grad(log_prob(leaf, masks).sum(), leaf))
    return torch.cat(parts)


def _terms_of_a_mask(n: int) -> int:
    """Number of terms that `log_prob` holds at a time for a group."""
    return n * comb(n, n // 2)


def inclusion_probabilities(logits: Tensor, n: int) -> Tensor:
    """Chance that each position is kept, `[G, M]`; each row sums to n. Exact.

    Raises:
        MaskproError: a group has more than 70 masks (`estimate_inclusion_probabilities` takes any pattern).
    """
    logits = wide(logits)
    if n == 2:
        if kernels := _kernels_for(logits):
            return kernels.inclusion_of_pairs(logits)  # type: ignore[no-any-return]
        return in_blocks(lambda block: inclusion_of_pairs(columns_of(block)), logits)
    candidates = NMPattern(n, logits.shape[1]).candidates().to(logits)
    return candidate_log_probs(logits, n).exp() @ candidates


def inclusion_gradient(logits: Tensor, n: int, values: Tensor) -> Tensor:
    """d/d logits of sum_i values_i * inclusion_probabilities_i, `[G, M]`, for fixed `values` `[G, M]`. Exact.

    Raises:
        MaskproError: a group has more than 70 masks (`estimate_inclusion_gradient` takes any pattern).
    """
    logits = wide(logits)
    if n == 2:
        if kernels := _kernels_for(logits):
            return kernels.inclusion_gradient_of_pairs(logits, values)  # type: ignore[no-any-return]
        return in_blocks(lambda *blocks: inclusion_gradient_of_pairs(*map(columns_of, blocks)), logits, values)
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad((inclusion_probabilities(leaf, n) * values).sum(), leaf)
    return gradient


def estimate_inclusion_probabilities(logits: Tensor, n: int, noisy: Tensor) -> Tensor:
    """Unbiased estimate of `inclusion_probabilities` for any pattern, `[G, M]`, from one draw `noisy` of `perturb`.

    Position i is kept where its noisy logit beats the n-th largest of the *others*, k_i. Given the others' noise, this has
    probability 1 - exp(-exp(logit_i - k_i)). The mean of this over draws is the inclusion probability (conditional Monte
    Carlo; the threshold is that of priority sampling, Duffield et al. 2007). A row sums to n only on average.
    """
    lead, _, _ = _lead_over_threshold(wide(logits), n, noisy)
    return -torch.expm1(-lead.exp())


def estimate_inclusion_gradient(logits: Tensor, n: int, noisy: Tensor, values: Tensor) -> Tensor:
    """Unbiased estimate of `inclusion_gradient` for any pattern, `[G, M]`: the derivative of the estimate above.

    Each threshold k_i is itself a logit plus fixed noise: the position at the threshold loses what i gains.
    """
    lead, kept, (last_kept, first_dropped) = _lead_over_threshold(wide(logits), n, noisy)
    slopes = values * (lead - lead.exp()).exp()
    gradient = slopes.clone()
    gradient.scatter_add_(1, first_dropped, -(slopes * kept).sum(dim=1, keepdim=True))
    gradient.scatter_add_(1, last_kept, -(slopes * ~kept).sum(dim=1, keepdim=True))
    return gradient


def entropy(logits: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Entropy of each group's mask distribution in nats, `[G]`; beyond 4:8 -log p of one draw, unbiased."""
    size = logits.shape[1]
    is_enumerated = NMPattern(n, size).most_sets <= MOST_CANDIDATES
    terms = max(comb(size, drawn) * (size - drawn) for drawn in range(n)) if is_enumerated else _terms_of_a_mask(n)
    parts: list[Tensor] = []
    for rows in logits.split(max(1, _LARGEST_BLOCK // terms)):
        if is_enumerated:
            log_probs = candidate_log_probs(rows, n)
            parts.append(-(log_probs.exp() * log_probs).sum(dim=1))
        else:
            parts.append(-log_prob(rows, sample(rows, n, generator)))
    return torch.cat(parts)


def candidate_log_probs(logits: Tensor, n: int) -> Tensor:
    """log p of every candidate mask, `[G, C(M, n)]`, in the order of `NMPattern.candidates`.

    Dynamic programme over the sets of positions drawn so far:
    p(A) = sum over the last draw i in A of p(A - i) exp(logit_i) / sum of exp(logits outside A - i).

    Raises:
        MaskproError: a group has more than 70 masks.
    """
    logits = wide(logits)
    size = logits.shape[1]
    check_enumerable(NMPattern(n, size))
    columns = columns_of(logits)
    drawn: dict[frozenset[int], Tensor] = {frozenset(): torch.zeros_like(columns[0])}
    for _ in range(n):
        terms: dict[frozenset[int], list[Tensor]] = {}
        for subset, log_p in drawn.items():
            outside = [i for i in range(size) if i not in subset]
            # Each term is the logarithm of one probability: nothing cancels however far the logits lie apart.
            for i, log_draw in zip(outside, log_p + columns[outside].log_softmax(dim=0), strict=True):
                terms.setdefault(subset | {i}, []).append(log_draw)
        drawn = {subset: torch.stack(parts).logsumexp(dim=0) for subset, parts in terms.items()}
    ordered = [drawn[frozenset(row.nonzero().flatten().tolist())] for row in NMPattern(n, size).candidates()]
    return torch.stack(ordered, dim=1)


def _kernels_for(logits: Tensor) -> ModuleType | None:
    """`maskpro.kernels` where it can be used: float32 groups of four, on a GPU, with Triton installed."""
    fits = logits.is_cuda and logits.dtype == torch.float32 and logits.shape[1] == 4 and logits.is_contiguous()
    return _kernels() if fits else None


@cache
def _kernels() -> ModuleType | None:
    try:
        from maskpro import kernels

        probe = torch.ones(1, 4, device="cuda")
        kernels.sample(probe, 2, probe)
    except Exception as error:  # no Triton, no C compiler for it, or an unknown card
        warnings.warn(f"without Triton's kernels the work on masks takes ten times as long ({error})", stacklevel=2)
        return None
    return kernels


@cache
def _draws(n: int, drawn: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One step of drawing n things without replacement, after `drawn` of them.

    Returns the sets S of things drawn so far, bool `[C, n]`, and the ways `[C', drawn + 1]` to each set with one more
    thing: the place of S, and the thing drawn.
    """
    before = list(combinations(range(n), drawn))
    places = {subset: place for place, subset in enumerate(before)}
    gone = torch.zeros(len(before), n, dtype=torch.bool)
    for row, subset in enumerate(before):
        gone[row, list(subset)] = True
    after = list(combinations(range(n), drawn + 1))
    origins = [[places[tuple(i for i in subset if i != last)] for last in subset] for subset in after]
    return gone, (torch.tensor(origins), torch.tensor(after))


def _lead_over_threshold(logits: Tensor, n: int, noisy: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """logit_i - k_i, the drawn mask, and the places `[G, 1]` of the last kept and the first dropped position."""
    ordered, places = noisy.sort(dim=1, descending=True, stable=True)
    kept = mode(noisy, n)
    # The others' n-th largest is the first dropped position for a kept one, and the last kept position for a dropped one.
    threshold = torch.where(kept, ordered[:, n : n + 1], ordered[:, n - 1 : n])
    # exp(80) is finite in float32; exp(-exp(80)) and exp(-80) are practically zero.
    lead = (logits - threshold).clamp(-LARGEST_LEAD, LARGEST_LEAD)
    return lead, kept, (places[:, n - 1 : n], places[:, n : n + 1])
