"""N:M patterns and group layouts.

Terms, used everywhere in this package:

- pattern "n:m": n weights *kept* of every m. A mask is True where a weight is kept. (Wanda's `prune_n` counts the
  weights that are removed.)
- G, M: number of groups and group size; tensors of the mask distribution are `[G, M]`.
- layout: which weights form a group. `channel` groups run along the input channels of one output channel and kernel
  position, the order that sparse tensor cores need and that a channels_last weight has in memory; `flattened` groups
  run along in_channels * kh * kw as stored (the order of the original MaskPro code). For Linear layers they agree.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from maskpro.errors import MaskproError

Layout = Literal["channel", "flattened"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True)
class NMPattern:
    """n weights kept of every m; 0 < n < m <= 16."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m <= 16:
            raise MaskproError(f"pattern is {self.n}:{self.m}; allowed: n:m with 0 < n < m <= 16, such as 2:4")

    @classmethod
    def parse(cls, text: str) -> NMPattern:
        """The pattern written as "n:m"."""
        match = re.fullmatch(r"(\d{1,3}):(\d{1,3})", text)
        if match is None:
            raise MaskproError(f"pattern is {text!r}; allowed: n:m with 0 < n < m <= 16, such as 2:4")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """Share of the weights that are removed."""
        return 1 - self.n / self.m

    @property
    def num_candidates(self) -> int:
        """C(m, n), the number of masks of a group."""
        return comb(self.m, self.n)

    @property
    def most_sets(self) -> int:
        """The most sets that there are of up to n of m positions: all that an enumeration by single draws goes through."""
        return max(comb(self.m, drawn) for drawn in range(1, self.n + 1))

    def candidates(self) -> Tensor:
        """All masks of a group, bool `[C(m, n), m]`, in lexicographic order of the kept positions."""
        masks = torch.zeros(self.num_candidates, self.m, dtype=torch.bool)
        for row, kept in enumerate(combinations(range(self.m), self.n)):
            masks[row, list(kept)] = True
        return masks


class PackedMask:
    """A mask that is stored, not computed with: one bit a weight, on the CPU.

    Attributes:
        bits: the bits as `numpy.packbits` packs them, uint8 `[ceil(P / 8)]`.
    """

    def __init__(self, mask: Tensor):
        self._shape, self._device = mask.shape, mask.device
        self.bits = torch.from_numpy(np.packbits(mask.cpu().numpy()))

    def of_bits(self, bits: Tensor) -> PackedMask:
        """Another mask of the same shape and device, from its `bits`.

        Raises:
            MaskproError: the bits belong to another number of weights.
        """
        if bits.shape != self.bits.shape or bits.dtype != torch.uint8:
            raise MaskproError(
                f"mask has {bits.numel()} bytes of bits; allowed: {self.bits.numel()}, for {self._shape.numel()} weights"
            )
        other = copy.copy(self)
        other.bits = bits
        return other

    def unpack(self) -> Tensor:
        """The mask, bool, on the device that it came from."""
        bits = np.unpackbits(self.bits.numpy(), count=self._shape.numel()).view(np.bool_)
        return torch.from_numpy(bits).view(self._shape).to(self._device)


def parse_layout(text: str) -> Layout:
    """The layout of that name."""
    for layout in LAYOUTS:
        if text == layout:
            return layout
    raise MaskproError(f"layout is {text!r}; allowed: {', '.join(LAYOUTS)}")


def group_width(shape: torch.Size, layout: Layout) -> int:
    """Length of the run of weights that groups may not cross (input channels, or all inputs of an output)."""
    return shape[1] if layout == "channel" else shape[1:].numel()


def group_order(weight: Tensor, layout: Layout) -> Tensor:
    """The values of a weight `[O, I]` or `[O, I, kh, kw]` as a flat tensor in which every M in a row form a group."""
    if layout == "channel" and weight.ndim == 4:
        weight = weight.permute(0, 2, 3, 1)
    return weight.reshape(-1)


def weight_view(flat: Tensor, shape: torch.Size, layout: Layout) -> Tensor:
    """Inverse of `group_order`: a view of `flat` with the weight's shape (channels_last strides for `channel`)."""
    if layout == "channel" and len(shape) == 4:
        out_channels, in_channels, height, width = shape
        return flat.view(out_channels, height, width, in_channels).permute(0, 3, 1, 2)
    return flat.view(shape)


def count_violations(mask: Tensor, pattern: NMPattern, layout: Layout) -> int:
    """Number of groups of a weight-shaped bool mask that do not keep exactly n of m."""
    kept = group_order(mask, layout).view(-1, pattern.m).sum(dim=1)
    return int((kept != pattern.n).sum())
