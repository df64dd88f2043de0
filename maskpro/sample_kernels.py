"""The Triton kernel that draws the noise of calibration samples on a GPU.

It computes what `maskpro.samples` computes with numpy and torch. That module decides when the kernel is used, is its
reference, and explains the formulas.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskpro.philox import KEY_STEPS, MULTIPLIERS

_BLOCK = 128
_MULTIPLIER_A, _MULTIPLIER_C = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
_KEY_STEP_A, _KEY_STEP_B = tl.constexpr(KEY_STEPS[0]), tl.constexpr(KEY_STEPS[1])
_SCALE = tl.constexpr(2.0**-32)
_HALF = tl.constexpr(2.0**-33)
_TURN = tl.constexpr(2 * math.pi / 2**24)


def normal_values(seed: int, indices: Tensor, size: int) -> Tensor:
    """The noise of the samples of `indices` (`[B]`, int64), float32 `[B, size]`, on the indices' device."""
    values = torch.empty(len(indices), size, device=indices.device)
    blocks = triton.cdiv(size, 4)
    rows = len(indices) * blocks
    if rows:
        # Two words: each is a 32-bit integer for Triton, whatever the seed.
        low, high = (word - (word >> 31 << 32) for word in (seed & 0xFFFFFFFF, seed >> 32))
        _normal_values[(triton.cdiv(rows, _BLOCK),)](
            indices.contiguous(), values, low, high, blocks, size, rows, BLOCK=_BLOCK
        )
    return values


@triton.jit
def _philox(a, b, c, d, key_a, key_b):
    """Philox4x32-10 on uint32, as `philox4x32`. Triton's own fails in Triton's interpreter once it has been imported."""
    for _ in tl.static_range(10):
        low_a = tl.mul(a, _MULTIPLIER_A, sanitize_overflow=False)
        low_c = tl.mul(c, _MULTIPLIER_C, sanitize_overflow=False)
        high_a = tl.umulhi(a, _MULTIPLIER_A)
        high_c = tl.umulhi(c, _MULTIPLIER_C)
        a = high_c ^ b ^ key_a
        b = low_c
        c = high_a ^ d ^ key_b
        d = low_a
        key_a = tl.add(key_a, _KEY_STEP_A, sanitize_overflow=False)
        key_b = tl.add(key_b, _KEY_STEP_B, sanitize_overflow=False)
    return a, b, c, d


@triton.jit
def _pair(first, second):
    """Two normal values from two words: see `box_muller`."""
    radius = tl.sqrt_rn(tl.log(first.to(tl.float32) * _SCALE + _HALF) * -2)
    angle = (second >> 8).to(tl.float32) * _TURN
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit(do_not_specialize=["low", "high"])
def _normal_values(indices, values, low, high, blocks, size, rows, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    sample = row // blocks
    block = row % blocks
    index = tl.load(indices + sample, mask=inside, other=0)
    zero = tl.full([BLOCK], 0, tl.uint32)
    a, b, c, d = _philox(
        index.to(tl.uint32),
        (index >> 32).to(tl.uint32),
        (block + 1).to(tl.uint32),
        zero,
        zero + low.to(tl.uint32, bitcast=True),
        zero + high.to(tl.uint32, bitcast=True),
    )
    first, second = _pair(a, b)
    third, fourth = _pair(c, d)
    quadruple = tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), [BLOCK, 4])
    column = block[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(values + sample[:, None] * size + column, quadruple, mask=inside[:, None] & (column < size))
