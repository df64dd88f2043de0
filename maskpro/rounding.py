"""A training state in few bits: a checkpoint holds it, and the trainer itself continues from it.

Values are rounded up or down at random, the more probably the nearer. So a value keeps its expectation however small its
changes between two roundings are. Rounding a rounded value changes nothing. Only integer operations and products with
powers of two are used, so apart from the random numbers all results are the same on every device.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# A logit is a whole number of 15 bits, sign included, times a power of two that all logits share. The upper 7 bits give it
# to 1/64 of the largest logit at worst, all bits to 1/16,384.
_UPPER_BITS, _LOWER_BITS = 7, 8
_HALF = 1 << (_UPPER_BITS + _LOWER_BITS - 1)

# Bits of float32's mantissa, below the sign and 8 bits of exponent.
_MANTISSA = 23
_BIAS = 127
# Bits that bfloat16, the upper half of a float32, drops.
_BFLOAT16_DROPS = 16
# Bits of the mantissa that an 8-bit square keeps.
_SQUARE_MANTISSA = 2
_SQUARE_DROPS = _MANTISSA - _SQUARE_MANTISSA
_SQUARE_CODES = 255
_SMALLEST_NORMAL = 1 << _SQUARE_MANTISSA


class FixedPoint(NamedTuple):
    """Logits as whole numbers times a power of two.

    Attributes:
        upper: the upper 7 bits of each number, uint8 `[P]`.
        lower: the lower 8 bits, uint8 `[P]`; None: unknown, and the middle of their range is taken.
        scale: the power of two, a float32 scalar.
    """

    upper: Tensor
    lower: Tensor | None
    scale: Tensor


class CodedSquares(NamedTuple):
    """Values of at least 0 in a byte each: exponent and 2 bits of mantissa, counted down from the largest value.

    Values below 2^-63 of the largest one, other than 0, become 2^-63 of it.

    Attributes:
        codes: uint8, of the values' shape.
        largest: code of the largest value, an int32 scalar.
    """

    codes: Tensor
    largest: Tensor


def pack_upper(upper: Tensor) -> Tensor:
    """The upper parts of numbers, uint8 `[P]`, in 7 bits each, uint8 `[7, ceil(P / 8)]` on the CPU."""
    numbers = upper.cpu().numpy()
    return torch.from_numpy(np.stack([np.packbits(numbers >> place & 1) for place in range(_UPPER_BITS)]))


def unpack_upper(packed: Tensor, count: int) -> Tensor:
    """Inverse of `pack_upper`, uint8 `[count]` on the CPU."""
    planes = (np.unpackbits(plane, count=count) << place for place, plane in enumerate(packed.numpy()))
    return torch.from_numpy(functools.reduce(np.bitwise_or, planes))


def fixed_point(values: Tensor, generator: torch.Generator) -> FixedPoint:
    """Finite values, rounded to 15 bits."""
    bits = values.abs().amax().float().view(torch.int32)
    exponent = ((bits >> _MANTISSA) - (_BIAS - 1)).clamp(min=-100)
    scale = (exponent - (_UPPER_BITS + _LOWER_BITS - 1) + _BIAS << _MANTISSA).view(torch.float32)
    exact = values / scale
    whole = exact.floor()
    whole += torch.rand(values.shape, generator=generator, device=values.device) < exact - whole
    numbers = whole.clamp_(1 - _HALF, _HALF - 1).to(torch.int32).view(-1) + _HALF
    return FixedPoint((numbers >> _LOWER_BITS).to(torch.uint8), (numbers & 0xFF).to(torch.uint8), scale)


def from_fixed_point(stored: FixedPoint, like: Tensor) -> Tensor:
    """The values, of the shape and type of `like`."""
    lower = 1 << (_LOWER_BITS - 1) if stored.lower is None else stored.lower.int()
    numbers = (stored.upper.int() << _LOWER_BITS) + lower - _HALF
    return numbers.view(like.shape).to(like.dtype) * stored.scale


def code_squares(values: Tensor, generator: torch.Generator) -> CodedSquares:
    """Values of at least 0, rounded to a byte each."""
    codes = _round_bits(values, _SQUARE_DROPS, generator) >> _SQUARE_DROPS
    largest = codes.amax()
    counted = (codes - largest + _SQUARE_CODES).clamp_(min=1)
    return CodedSquares(torch.where(values > 0, counted, 0).to(torch.uint8), largest)


def from_coded_squares(stored: CodedSquares) -> Tensor:
    """The values, float32."""
    codes = stored.codes.int()
    bits = (codes - _SQUARE_CODES + stored.largest).clamp_(min=_SMALLEST_NORMAL) << _SQUARE_DROPS
    return torch.where(codes > 0, bits, 0).view(torch.float32)


def round_to_bfloat16(values: Tensor, generator: torch.Generator) -> Tensor:
    """Finite values as bfloat16."""
    bits = _round_bits(values, _BFLOAT16_DROPS, generator)
    return (bits >> _BFLOAT16_DROPS << _BFLOAT16_DROPS).view(torch.float32).bfloat16()


def _round_bits(values: Tensor, drops: int, generator: torch.Generator) -> Tensor:
    """Float32 bits as int32, rounded at random so that the lower ones can be cut off."""
    noise = torch.randint(1 << drops, values.shape, dtype=torch.int32, generator=generator, device=values.device)
    return values.float().view(torch.int32) + noise
