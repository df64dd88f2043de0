"""Triton kernels for groups of four on a GPU: each reads and writes every value once.

They compute what `maskpro.distribution` computes with torch, whose single operations each go through memory. That module
decides when the kernels are used, is their reference, and explains the formulas. Rows are float32, contiguous, `[G, 4]`.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskpro.closed_forms import LARGEST_LEAD, LONGEST_LEAD

_BLOCK = 256
_LEAD = tl.constexpr(LARGEST_LEAD)
_LONGEST = tl.constexpr(LONGEST_LEAD)


def sample(logits: Tensor, n: int, exponential: Tensor) -> Tensor:
    """The n largest of logits - log(exponential), bool `[G, 4]`: a draw, for standard exponential values `[G, 4]`."""
    mask = torch.empty_like(logits, dtype=torch.bool)
    _launch(_sample, len(logits), logits, exponential, mask.view(torch.int32), n)
    return mask


def score_of_pairs(logits: Tensor, mask: Tensor, factor: Tensor | None = None) -> Tensor:
    """d log p(mask) / d logits for n = 2, `[G, 4]`, of bool masks `[G, 4]`, times a factor (float32, a scalar)."""
    result = torch.empty_like(logits)
    factor = torch.ones((), device=logits.device) if factor is None else factor.float()
    _launch(_score_of_pairs, len(logits), logits, mask.view(torch.int32), factor, result)
    return result


def inclusion_of_pairs(logits: Tensor) -> Tensor:
    """Chance that each position is kept for n = 2, `[G, 4]`."""
    result = torch.empty_like(logits)
    _launch(_inclusion_of_pairs, len(logits), logits, result)
    return result


def inclusion_gradient_of_pairs(logits: Tensor, values: Tensor) -> Tensor:
    """d/d logits of sum_i values_i * inclusion_probabilities_i for n = 2, `[G, 4]`."""
    result = torch.empty_like(logits)
    _launch(_inclusion_gradient_of_pairs, len(logits), logits, values, result)
    return result


def _launch(kernel: Any, groups: int, *arguments: Any) -> None:
    if groups:
        kernel[(triton.cdiv(groups, _BLOCK),)](*arguments, groups, BLOCK=_BLOCK)


@triton.jit
def _groups(groups, BLOCK: tl.constexpr):
    """The numbers of this program's groups, and whether each lies within the tensor."""
    group = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return group, group < groups


@triton.jit
def _load(rows, group, inside, BLOCK: tl.constexpr):
    """The four columns of rows; rows are read as whole vectors."""
    places = group[:, None] * 4 + tl.arange(0, 4)[None, :]
    values = tl.load(rows + places, mask=inside[:, None], other=1.0)
    even, odd = tl.split(tl.reshape(values, [BLOCK, 2, 2]))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def _store(rows, group, inside, a, b, c, d, BLOCK: tl.constexpr):
    places = group[:, None] * 4 + tl.arange(0, 4)[None, :]
    values = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [BLOCK, 4])
    tl.store(rows + places, values, mask=inside[:, None])


@triton.jit
def _softmax_and_rest(a, b, c, d):
    """p = softmax and 1 - p, the latter summed from the other exponentials; leads of more than 40 are cut to 40."""
    first, other = tl.maximum(a, b), tl.maximum(c, d)
    second = tl.maximum(tl.minimum(first, other), tl.maximum(tl.minimum(a, b), tl.minimum(c, d)))
    top = tl.minimum(tl.maximum(first, other), second + _LONGEST)
    a = tl.exp(tl.maximum(tl.minimum(a - top, 0.0), -_LEAD))
    b = tl.exp(tl.maximum(tl.minimum(b - top, 0.0), -_LEAD))
    c = tl.exp(tl.maximum(tl.minimum(c - top, 0.0), -_LEAD))
    d = tl.exp(tl.maximum(tl.minimum(d - top, 0.0), -_LEAD))
    inverse = 1 / (a + b + c + d)
    rest_a, rest_b, rest_c, rest_d = _others(a, b, c, d)
    return (
        a * inverse,
        b * inverse,
        c * inverse,
        d * inverse,
        rest_a * inverse,
        rest_b * inverse,
        rest_c * inverse,
        rest_d * inverse,
    )


@triton.jit
def _others(a, b, c, d):
    """For each value the sum of the other three. Exact: the total minus the value itself would cancel."""
    return b + c + d, a + c + d, a + b + d, a + b + c


@triton.jit
def _sample(logits, exponential, mask, n, groups, BLOCK: tl.constexpr):
    group, inside = _groups(groups, BLOCK)
    a, b, c, d = _load(logits, group, inside, BLOCK)
    noise_a, noise_b, noise_c, noise_d = _load(exponential, group, inside, BLOCK)
    a -= tl.log(noise_a)
    b -= tl.log(noise_b)
    c -= tl.log(noise_c)
    d -= tl.log(noise_d)
    # Ranks by pairwise comparison: exactly n are kept, of equal values the first; NaN counts as minus infinity.
    a = tl.where(a == a, a, float("-inf"))
    b = tl.where(b == b, b, float("-inf"))
    c = tl.where(c == c, c, float("-inf"))
    d = tl.where(d == d, d, float("-inf"))
    ab = (a >= b).to(tl.int32)
    ac = (a >= c).to(tl.int32)
    ad = (a >= d).to(tl.int32)
    bc = (b >= c).to(tl.int32)
    bd = (b >= d).to(tl.int32)
    cd = (c >= d).to(tl.int32)
    kept_a = (3 - ab - ac - ad < n).to(tl.int32)
    kept_b = (ab + 2 - bc - bd < n).to(tl.int32)
    kept_c = (ac + bc + 1 - cd < n).to(tl.int32)
    kept_d = (ad + bd + cd < n).to(tl.int32)
    # Four bools, a byte each, as one word.
    tl.store(mask + group, kept_a | kept_b << 8 | kept_c << 16 | kept_d << 24, mask=inside)


@triton.jit
def _score_of_pairs(logits, mask, factor, result, groups, BLOCK: tl.constexpr):
    group, inside = _groups(groups, BLOCK)
    a, b, c, d = _load(logits, group, inside, BLOCK)
    p_a, p_b, p_c, p_d, rest_a, rest_b, rest_c, rest_d = _softmax_and_rest(a, b, c, d)
    word = tl.load(mask + group, mask=inside, other=1)
    kept_a = (word & 1).to(tl.float32)
    kept_b = (word >> 8 & 1).to(tl.float32)
    kept_c = (word >> 16 & 1).to(tl.float32)
    kept_d = (word >> 24 & 1).to(tl.float32)
    h = kept_a / rest_a + kept_b / rest_b + kept_c / rest_c + kept_d / rest_d
    # Weights of the kept positions: (1 / (1 - p_i) / h) / (1 - p_i).
    weight_a, weight_b, weight_c, weight_d = _others(
        kept_a / rest_a / h / rest_a,
        kept_b / rest_b / h / rest_b,
        kept_c / rest_c / h / rest_c,
        kept_d / rest_d / h / rest_d,
    )
    factor = tl.load(factor)
    _store(
        result,
        group,
        inside,
        (kept_a - p_a - weight_a * p_a) * factor,
        (kept_b - p_b - weight_b * p_b) * factor,
        (kept_c - p_c - weight_c * p_c) * factor,
        (kept_d - p_d - weight_d * p_d) * factor,
        BLOCK,
    )


@triton.jit
def _inclusion_of_pairs(logits, result, groups, BLOCK: tl.constexpr):
    group, inside = _groups(groups, BLOCK)
    a, b, c, d = _load(logits, group, inside, BLOCK)
    p_a, p_b, p_c, p_d, rest_a, rest_b, rest_c, rest_d = _softmax_and_rest(a, b, c, d)
    odds_a, odds_b, odds_c, odds_d = _others(p_a / rest_a, p_b / rest_b, p_c / rest_c, p_d / rest_d)
    _store(
        result,
        group,
        inside,
        p_a * (1 + odds_a),
        p_b * (1 + odds_b),
        p_c * (1 + odds_c),
        p_d * (1 + odds_d),
        BLOCK,
    )


@triton.jit
def _inclusion_gradient_of_pairs(logits, values, result, groups, BLOCK: tl.constexpr):
    group, inside = _groups(groups, BLOCK)
    a, b, c, d = _load(logits, group, inside, BLOCK)
    p_a, p_b, p_c, p_d, rest_a, rest_b, rest_c, rest_d = _softmax_and_rest(a, b, c, d)
    v_a, v_b, v_c, v_d = _load(values, group, inside, BLOCK)
    odds_a, odds_b, odds_c, odds_d = _others(p_a / rest_a, p_b / rest_b, p_c / rest_c, p_d / rest_d)
    gain_a, gain_b, gain_c, gain_d = _others(v_a * p_a, v_b * p_b, v_c * p_c, v_d * p_d)
    # d/dp_i, the p taken as independent.
    d_a = (odds_a + 1) * v_a + gain_a / rest_a / rest_a
    d_b = (odds_b + 1) * v_b + gain_b / rest_b / rest_b
    d_c = (odds_c + 1) * v_c + gain_c / rest_c / rest_c
    d_d = (odds_d + 1) * v_d + gain_d / rest_d / rest_d
    loss_a, loss_b, loss_c, loss_d = _others(p_a * d_a, p_b * d_b, p_c * d_c, p_d * d_d)
    _store(
        result,
        group,
        inside,
        (rest_a * d_a - loss_a) * p_a,
        (rest_b * d_b - loss_b) * p_b,
        (rest_c * d_c - loss_c) * p_c,
        (rest_d * d_d - loss_d) * p_d,
        BLOCK,
    )
