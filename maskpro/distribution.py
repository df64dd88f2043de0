"""The mask distribution of groups of logits: N of M positions drawn without replacement from softmax(logits).

Pure functions on `logits` `[G, M]` and bool masks `[G, M]`. Arithmetic and results are in float32, or float64 for float64
logits: half precision is widened first.
Source: MaskPro (Sun et al., arXiv 2506.12876), section 4; for 2:4, with p = softmax(logits) of a group and the kept pair
{a, b}: p(mask) = p_a p_b (1 / (1 - p_a) + 1 / (1 - p_b)). The upstream code clamps p to 1e-8 and adds 1e-8 to the
denominators, which makes its score wrong once one logit leads by about 10; here 1 - p_i is summed from the *other*
exponentials, so nothing cancels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from itertools import combinations
from math import comb, exp
from types import ModuleType

import torch
from torch import Tensor

from maskpro.errors import MaskproError
from maskpro.pattern import NMPattern

# Of a float32, exp of 80 and of -80 are finite and not zero.
LARGEST_LEAD = 80.0
# By which a group's largest logit may lead the second one in a closed form: a longer lead changes probabilities and
# gradients by exp(-40), less than the rounding of a float64, and all that lies 80 below is 40 below the second.
LONGEST_LEAD = 40.0
# Of a group, up to which sums over all of its masks are computed: 4:8 has 70, 8:16 has 12,870.
MOST_CANDIDATES = 70
# Of which a few columns fit into the cache of one CPU core.
_CACHED_GROUPS = 2**14
# Of the terms that `score` holds at a time (64 MiB in float32).
_LARGEST_BLOCK = 2**24


def check_enumerable(pattern: NMPattern) -> None:
    """Raise where a sum over all masks of a group would have more than 70 terms (4:8)."""
    if pattern.num_candidates > MOST_CANDIDATES:
        raise MaskproError(
            f"pattern is {pattern}, which has {pattern.num_candidates:,} masks a group; allowed here: at most "
            f"{MOST_CANDIDATES}, such as 2:4 or 4:8"
        )


def perturb(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Logits plus standard Gumbel noise, `[G, M]`: their n largest are a mask drawn from the distribution."""
    logits = _wide(logits)
    # -log(-log u) from uniforms: torch's `exponential_` is not vectorised on CPUs and takes five times as long.
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    return logits - uniform.log_().neg_().log_()


def sample(logits: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw one mask per group, bool `[G, M]`.

    Gumbel top-n: the n largest of logits + Gumbel noise are a draw without replacement (Kool et al. 2019, section 2).
    """
    if kernels := _kernels_for(logits):
        # -log of a standard exponential value is one of Gumbel's; a GPU draws it as fast as a uniform one.
        return kernels.sample(logits, n, torch.empty_like(logits).exponential_(generator=generator))  # type: ignore[no-any-return]
    return _in_blocks(lambda block: _mode(_columns(perturb(block, generator)), n), logits)


def mode(logits: Tensor, n: int) -> Tensor:
    """The n largest logits of each group, bool `[G, M]`; of equal ones the first is kept. NaN counts as minus infinity."""
    return _in_blocks(lambda block: _mode(_columns(block), n), logits)


def _mode(columns: Tensor, n: int) -> Tensor:
    """Which of each row's columns `[M, B]` are the n largest, bool; writes over them."""
    # Ranks by pairwise comparison: exact n even under ties, and several times faster than topk over 4 columns.
    # A comparison with NaN is always false, so that its place would hang on the order of the comparisons.
    columns.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    ranks = torch.zeros(columns.shape, dtype=torch.uint8, device=columns.device)
    for later in range(1, len(columns)):
        for earlier in range(later):
            earlier_wins = columns[earlier] >= columns[later]
            ranks[later] += earlier_wins
            ranks[earlier] += ~earlier_wins
    return ranks < n


def log_prob(logits: Tensor, mask: Tensor) -> Tensor:
    """log p(mask | logits) of the *unordered* masks, `[G]`; every row of `mask` keeps equally many positions.

    Dynamic programme over the sets S of kept positions drawn so far, 2^n of them rather than n! orders:
    g(empty) = 1, g(S) = sum over the last draw i in S of g(S - i) * exp(logit_i) / sum of exp(logits outside S - i), and
    p(mask) = g(mask), all of it in logarithms of probabilities, so that nothing cancels however far the logits lie apart.
    """
    logits = _wide(logits)
    n = int(mask[0].sum())
    # Columns [M, G] from here on: what goes over a group's few positions is then whole vectors.
    outside = logits.masked_fill(mask, -torch.inf).t()
    # Relative to the largest of them, which takes no rounding from the others; -inf where the mask keeps everything.
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

    `n` positions are kept in every row (default: counted, for which a GPU has to be waited for).
    """
    logits = _wide(logits)
    if n is None:
        n = int(mask[0].sum())
    if n == 2 and (kernels := _kernels_for(logits)):
        return kernels.score_of_pairs(logits, mask, factor)  # type: ignore[no-any-return]
    if n == 2:
        result = _in_blocks(lambda *blocks: _score_of_pairs(*map(_columns, blocks)), logits, mask)
    else:
        result = _score(logits, mask, n)
    return result if factor is None else result.mul_(factor)


def _score(logits: Tensor, mask: Tensor, n: int) -> Tensor:
    terms = n * comb(n, n // 2)
    parts: list[Tensor] = []
    for rows, masks in zip(*(values.split(max(1, _LARGEST_BLOCK // terms)) for values in (logits, mask)), strict=True):
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_(True)
            parts.append(*torch.autograd.grad(log_prob(leaf, masks).sum(), leaf))
    return torch.cat(parts)


def inclusion_probabilities(logits: Tensor, n: int) -> Tensor:
    """Chance that each position is kept, `[G, M]`; each row sums to n. Exact.

    Raises:
        MaskproError: a group has more than 70 masks (`estimate_inclusion_probabilities` takes any pattern).
    """
    logits = _wide(logits)
    if n == 2:
        if kernels := _kernels_for(logits):
            return kernels.inclusion_of_pairs(logits)  # type: ignore[no-any-return]
        return _in_blocks(lambda block: _inclusion_of_pairs(_columns(block)), logits)
    candidates = NMPattern(n, logits.shape[1]).candidates().to(logits)
    return candidate_log_probs(logits, n).exp() @ candidates


def inclusion_gradient(logits: Tensor, n: int, values: Tensor) -> Tensor:
    """d/d logits of sum_i values_i * inclusion_probabilities_i, `[G, M]`, for fixed `values` `[G, M]`. Exact.

    Raises:
        MaskproError: a group has more than 70 masks (`estimate_inclusion_gradient` takes any pattern).
    """
    logits = _wide(logits)
    if n == 2:
        if kernels := _kernels_for(logits):
            return kernels.inclusion_gradient_of_pairs(logits, values)  # type: ignore[no-any-return]
        return _in_blocks(lambda *blocks: _inclusion_gradient_of_pairs(*map(_columns, blocks)), logits, values)
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad((inclusion_probabilities(leaf, n) * values).sum(), leaf)
    return gradient


def relaxed_inclusion(logits: Tensor, n: int) -> Tensor:
    """A relaxed mask of n positions a group, `[G, M]`: each row sums to n, and is the n largest logits where they lead far.

    With n of 1 or 2 `inclusion_probabilities`. With more, whose sums over all orders cost ten times a gradient, those of
    conditional Bernoulli sampling: p(mask) is proportional to exp(sum of the kept logits) (Chen, Dempster and Liu,
    Biometrika 1994), by their recursion over elementary symmetric polynomials, here of logarithms. For any pattern.
    """
    if n <= 2:
        return inclusion_probabilities(logits, n)
    return _in_blocks(lambda block: _conditional_bernoulli(_columns(block), n), _wide(logits))


def relaxed_inclusion_gradient(logits: Tensor, n: int, values: Tensor) -> Tensor:
    """d/d logits of sum_i values_i * relaxed_inclusion_i, `[G, M]`, for fixed `values` `[G, M]`. Exact."""
    if n <= 2:
        return inclusion_gradient(logits, n, values)

    def slopes(block: Tensor, weights: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = _columns(block).requires_grad_(True)
            (gradient,) = torch.autograd.grad((_conditional_bernoulli(leaf, n) * _columns(weights)).sum(), leaf)
        return gradient

    return _in_blocks(slopes, _wide(logits), values)


def _conditional_bernoulli(columns: Tensor, n: int) -> Tensor:
    """Inclusion probabilities of and as columns `[M, B]`."""
    # Relative to the threshold: who lies far above it is kept, far below it dropped, by whatever length.
    with torch.no_grad():
        kept = _mode(columns.clone(), n)
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
        taken = [value + logit for value in last]  # of one degree more
        rows.append(
            [last[0]]
            + [torch.logaddexp(last[degree], taken[degree - 1]) for degree in range(1, min(len(last), n + 1))]
            + ([taken[-1]] if len(last) <= n else [])
        )
    return rows


def estimate_inclusion_probabilities(logits: Tensor, n: int, noisy: Tensor) -> Tensor:
    """Unbiased estimate of `inclusion_probabilities` for any pattern, `[G, M]`, from one draw `noisy` of `perturb`.

    Position i is kept where its noisy logit beats the n-th largest of the *others*, k_i. With the others' noise given,
    that has probability 1 - exp(-exp(logit_i - k_i)), whose mean over draws is the inclusion probability (conditional
    Monte Carlo; the threshold is that of priority sampling, Duffield et al. 2007). A row sums to n only on average.
    """
    lead, _, _ = _lead_over_threshold(_wide(logits), n, noisy)
    return -torch.expm1(-lead.exp())


def estimate_inclusion_gradient(logits: Tensor, n: int, noisy: Tensor, values: Tensor) -> Tensor:
    """Unbiased estimate of `inclusion_gradient` for any pattern, `[G, M]`: the derivative of the estimate above.

    Each threshold k_i is itself a logit plus fixed noise, so that what i gains, the position at its threshold loses.
    """
    lead, kept, (last_kept, first_dropped) = _lead_over_threshold(_wide(logits), n, noisy)
    slopes = values * (lead - lead.exp()).exp()
    gradient = slopes.clone()
    gradient.scatter_add_(1, first_dropped, -(slopes * kept).sum(dim=1, keepdim=True))
    gradient.scatter_add_(1, last_kept, -(slopes * ~kept).sum(dim=1, keepdim=True))
    return gradient


def entropy(logits: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Entropy of each group's mask distribution in nats, `[G]`; beyond 70 masks a group -log p of one draw, unbiased."""
    if NMPattern(n, logits.shape[1]).num_candidates > MOST_CANDIDATES:
        return -log_prob(logits, sample(logits, n, generator))
    log_probs = candidate_log_probs(logits, n)
    return -(log_probs.exp() * log_probs).sum(dim=1)


def candidate_log_probs(logits: Tensor, n: int) -> Tensor:
    """log p of every candidate mask, `[G, C(M, n)]`, in the order of `NMPattern.candidates`.

    Dynamic programme over the sets of positions drawn so far:
    p(A) = sum over the last draw i in A of p(A - i) exp(logit_i) / sum of exp(logits outside A - i).

    Raises:
        MaskproError: a group has more than 70 masks.
    """
    logits = _wide(logits)
    size = logits.shape[1]
    check_enumerable(NMPattern(n, size))
    columns = _columns(logits)
    drawn: dict[frozenset[int], Tensor] = {frozenset(): torch.zeros_like(columns[0])}
    for _ in range(n):
        terms: dict[frozenset[int], list[Tensor]] = {}
        for subset, log_p in drawn.items():
            outside = [i for i in range(size) if i not in subset]
            # One logarithm of a probability each, so that nothing cancels however far the logits lie apart.
            for i, log_draw in zip(outside, log_p + columns[outside].log_softmax(dim=0), strict=True):
                terms.setdefault(subset | {i}, []).append(log_draw)
        drawn = {subset: torch.stack(parts).logsumexp(dim=0) for subset, parts in terms.items()}
    ordered = [drawn[frozenset(row.nonzero().flatten().tolist())] for row in NMPattern(n, size).candidates()]
    return torch.stack(ordered, dim=1)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _kernels_for(logits: Tensor) -> ModuleType | None:
    """`maskpro.kernels` where they can be used: float32 groups of four, on a GPU, with Triton at hand."""
    fits = logits.is_cuda and logits.dtype == torch.float32 and logits.shape[1] == 4 and logits.is_contiguous()
    return _kernels() if fits else None


@cache
def _kernels() -> ModuleType | None:
    try:
        from maskpro import kernels

        probe = torch.ones(1, 4, device="cuda")
        kernels.sample(probe, 2, probe)
    except Exception as error:  # no Triton, no C compiler for it, or a card that it does not know
        warnings.warn(f"without Triton's kernels the work on masks takes ten times as long ({error})", stacklevel=2)
        return None
    return kernels


@cache
def _draws(n: int, drawn: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The draw after `drawn` of n things: the sets S of what is gone by then, bool `[C, n]`; and for each set with one
    thing more the ways `[C', drawn + 1]` to it: the place of S, and the thing that is drawn.
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
    # For a kept position the others' n-th largest is the first dropped one, for a dropped position the last kept one.
    threshold = torch.where(kept, ordered[:, n : n + 1], ordered[:, n - 1 : n])
    # A float's exp of 80 is finite, and exp(-exp(80)) and exp(-80) are as good as zero.
    lead = (logits - threshold).clamp(-LARGEST_LEAD, LARGEST_LEAD)
    return lead, kept, (places[:, n - 1 : n], places[:, n : n + 1])


def _in_blocks(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """A function of rows `[B, M]` whose value is columns `[M, B]`, of a block of groups at a time, as rows `[G, M]`.

    A block's intermediate values stay in a CPU's cache, and memory is asked for once, for the result: new pages cost as
    much as the arithmetic on them. A GPU takes all groups at once.
    """
    groups = len(rows[0])
    size = max(1, groups) if rows[0].is_cuda else _CACHED_GROUPS
    result: Tensor | None = None
    for start in range(0, max(1, groups), size):
        columns = function(*(part[start : start + size] for part in rows))
        if result is None:
            result = columns.new_empty(groups, len(columns))
        for place, column in enumerate(columns):
            result[start : start + size, place] = column
    assert result is not None
    return result


def _columns(rows: Tensor) -> Tensor:
    """Rows `[B, M]` as columns `[M, B]`, whole vectors to a CPU (`t().contiguous()` takes three times as long)."""
    return torch.stack(rows.unbind(1))


def _others(columns: Tensor) -> Tensor:
    """Sum of the other columns of each, `[M, B]`; exact, where total minus own would cancel."""
    sums = torch.empty_like(columns)
    for place in range(len(columns)):
        first, *more = [column for other, column in enumerate(columns) if other != place]
        total = sums[place].copy_(first)
        for column in more:
            total += column
    return sums


def _softmax_and_rest(columns: Tensor) -> tuple[Tensor, Tensor]:
    """p = softmax(logits) and 1 - p, of and as columns `[M, B]`; no logit leads by more than `LONGEST_LEAD`.

    Where one does, all that is computed of p depends on the lead by less than rounding, but 1 - p has to keep what tells
    the other positions apart.
    """
    # A GPU's answer would have to be waited for; on a CPU leads are cut only where there are long ones.
    exponentials, others = _exponentials(_with_short_leads(columns) if columns.is_cuda else columns)
    if not columns.is_cuda and others.amin() < exp(-LONGEST_LEAD):
        exponentials, others = _exponentials(_with_short_leads(columns))
    total = exponentials.sum(dim=0)
    return exponentials / total, others.div_(total)


def _exponentials(columns: Tensor) -> tuple[Tensor, Tensor]:
    """exp(logits - the largest), and of each the sum of the others."""
    exponentials = (columns - columns.amax(dim=0)).clamp_(min=-LARGEST_LEAD).exp_()
    return exponentials, _others(exponentials)


def _with_short_leads(columns: Tensor) -> Tensor:
    """The logits, none of which leads the next one of its group by more than `LONGEST_LEAD`."""
    top, second = columns[0], torch.full_like(columns[0], -torch.inf)
    for column in columns[1:]:
        second = torch.maximum(second, torch.minimum(top, column))
        top = torch.maximum(top, column)
    return torch.minimum(columns, second + LONGEST_LEAD)


def _inclusion_of_pairs(logits: Tensor) -> Tensor:
    p, rest = _softmax_and_rest(logits)
    return p * (1 + _others(p / rest))


def _inclusion_gradient_of_pairs(logits: Tensor, values: Tensor) -> Tensor:
    """d/dp_i treating the p as independent, then the softmax's Jacobian; (1 - p_i) is `rest`, never a difference."""
    p, rest = _softmax_and_rest(logits)
    d = _others(p / rest).add_(1).mul_(values).add_(_others(values * p).div_(rest).div_(rest))
    return (rest.mul_(d) - _others(p * d)).mul_(p)


def _score_of_pairs(logits: Tensor, mask: Tensor) -> Tensor:
    """The score for n = 2: with kept {a, b} and h = 1/(1-p_a) + 1/(1-p_b), log p = log p_a + log p_b + log h, so
    score_k = mask_k - p_k - sum over kept i != k of (1/(1-p_i) / h) * p_k / (1-p_i).
    """
    p, rest = _softmax_and_rest(logits)
    kept = mask.to(p.dtype)
    inverse = kept / rest
    weight = inverse.div_(inverse.sum(dim=0))
    return kept.sub_(p).sub_(_others(weight.div_(rest)).mul_(p))
