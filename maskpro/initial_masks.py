"""One-shot masks of a dense network, the starting points of mask learning, as bool groups `[P / M, M]`."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from maskpro.distribution import mode
from maskpro.errors import MaskproError
from maskpro.masked_model import MaskedModel, check_layer_masks, maskable_layers
from maskpro.pattern import Layout, NMPattern


def magnitude_mask(masked: MaskedModel) -> Tensor:
    """Keep the n largest absolute weights of every group (Han et al. 2015)."""
    return mode(masked.base.abs().view(-1, masked.pattern.m), masked.pattern.n)


def magnitude_masked_model(
    dense: nn.Module, *, pattern: NMPattern, layout: Layout, targets: tuple[str, ...] = ("all",)
) -> MaskedModel:
    """A copy of a dense network with its magnitude mask set."""
    masked = MaskedModel(copy.deepcopy(dense), pattern=pattern, layout=layout, targets=targets)
    masked.set_mask(magnitude_mask(masked))
    return masked


def random_mask(masked: MaskedModel, generator: torch.Generator) -> Tensor:
    """Keep n weights of every group at random."""
    keys = torch.rand(masked.base.shape, generator=generator).to(masked.base.device)
    return mode(keys.view(-1, masked.pattern.m), masked.pattern.n)


def extract_masks(pruned: nn.Module, *, pattern: NMPattern, layout: Layout) -> dict[str, Tensor]:
    """Masks of the layers of a pruned network that hold zeros: True where the weight is not zero.

    Protected layers and layers without zeros are left out.

    Raises:
        MaskproError: no layer holds zeros, or the zeros of one are not n:m.
    """
    masks = {name: weight.detach() != 0 for name, weight in maskable_layers(pruned).items() if (weight == 0).any()}
    if not masks:
        raise MaskproError("model has no zeros in its maskable layers; allowed: a pruned model (maskpro prune makes one)")
    check_layer_masks(masks, {name: mask.shape for name, mask in masks.items()}, pattern, layout)
    return masks
