"""One-shot masks of a dense network, the starting points of mask learning, as bool groups `[P / M, M]`.

No method changes a weight. Wanda and SparseGPT look at the inputs of every layer while the dense network runs on
calibration samples. A weight's column is its place in the run of inputs that its groups are cut from. For Conv2d this run
is the in_channels * kh * kw of an unfolded patch, in the order of the layout.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskpro.distribution import mode
from maskpro.errors import MaskproError
from maskpro.masked_model import MaskedModel, check_layer_masks, maskable_layers
from maskpro.objectives import Objective, evaluation_mode
from maskpro.pattern import Layout, NMPattern, group_order, group_width, weight_view

InitialMaskMethod = Literal["magnitude", "wanda", "sparsegpt", "random"]
INITIAL_MASK_METHODS: tuple[InitialMaskMethod, ...] = get_args(InitialMaskMethod)

# Calibration samples of Wanda and SparseGPT, as in both papers.
ONE_SHOT_SAMPLES = 128
_BATCH = 32
# SparseGPT's damping: this share of the mean diagonal is added to the Hessian.
_DAMPING = 0.01


def parse_initial_mask(text: str) -> InitialMaskMethod:
    """The one-shot method of that name."""
    for method in INITIAL_MASK_METHODS:
        if text == method:
            return method
    raise MaskproError(f"initial_mask is {text!r}; allowed: {', '.join(INITIAL_MASK_METHODS)}")


def one_shot_mask(
    masked: MaskedModel, method: InitialMaskMethod, *, objective: Objective, generator: torch.Generator
) -> Tensor:
    """The mask of a dense (not yet masked) model by the method of that name.

    Args:
        objective: Wanda and SparseGPT look at its first 128 samples.
        generator: generator of random masks.
    """
    if method == "magnitude":
        return magnitude_mask(masked)
    if method == "random":
        return random_mask(masked, generator)
    hessians = input_hessians(masked, objective, ONE_SHOT_SAMPLES)
    return wanda_mask(masked, hessians) if method == "wanda" else sparsegpt_mask(masked, hessians)


def magnitude_mask(masked: MaskedModel) -> Tensor:
    """Keep the n largest absolute weights of every group (Han et al. 2015)."""
    return mode(masked.base.abs().view(-1, masked.pattern.m), masked.pattern.n)


def magnitude_masked_model(network: nn.Module, *, pattern: NMPattern, layout: Layout, **layers: Any) -> MaskedModel:
    """A copy of a dense network with its magnitude mask set; `layers` are further arguments of `MaskedModel`."""
    masked = MaskedModel(copy.deepcopy(network), pattern=pattern, layout=layout, **layers)
    masked.set_mask(magnitude_mask(masked))
    return masked


def random_mask(masked: MaskedModel, generator: torch.Generator) -> Tensor:
    """Keep n weights of every group at random."""
    keys = torch.rand(masked.base.shape, generator=generator).to(masked.base.device)
    return mode(keys.view(-1, masked.pattern.m), masked.pattern.n)


def wanda_mask(masked: MaskedModel, hessians: Mapping[str, Tensor]) -> Tensor:
    """Keep the n largest |weight| * norm of its input in every group (Sun et al., arXiv 2306.11695, equation 1)."""
    parts = []
    for layer in masked.layers:
        norms = hessians[layer.name].diagonal().sqrt()
        weight = masked.base[layer.start : layer.stop].view(layer.shape[0], -1)
        parts.append((weight.abs() * norms).view(-1, masked.pattern.m))
    return mode(torch.cat(parts), masked.pattern.n)


def sparsegpt_mask(masked: MaskedModel, hessians: Mapping[str, Tensor]) -> Tensor:
    """The mask of SparseGPT's n:m variant (Frantar and Alistarh, arXiv 2301.00774, algorithm 1), without its new weights.

    Departure: every layer is pruned on the dense network's inputs. The authors take those of the network pruned so far.
    """
    parts = []
    for layer in masked.layers:
        weight = masked.base[layer.start : layer.stop].view(layer.shape[0], -1)
        parts.append(_sparsegpt(weight, hessians[layer.name], masked.pattern).view(-1, masked.pattern.m))
    return torch.cat(parts)


def _sparsegpt(weight: Tensor, hessian: Tensor, pattern: NMPattern) -> Tensor:
    """Mask of a weight `[O, K]` with the Hessian `[K, K]` of its columns, bool `[O, K]`.

    Columns are decided from left to right, a group at a time, by w^2 / [H^-1]_jj. The weights to the right of a removed one
    are updated to compensate for it, which changes the later decisions.
    """
    weight, hessian = weight.double(), hessian.double().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    hessian.diagonal().add_(_DAMPING * hessian.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    weight = weight.masked_fill(dead, 0)
    mask = torch.empty_like(weight, dtype=torch.bool)
    for start in range(0, weight.shape[1], pattern.m):
        stop = start + pattern.m
        mask[:, start:stop] = mode((weight[:, start:stop] / inverse.diagonal()[start:stop]).square(), pattern.n)
        for column in range(start, stop):
            removed = weight[:, column].masked_fill(mask[:, column], 0)
            weight[:, column:] -= (removed / inverse[column, column])[:, None] * inverse[column, column:]
    return mask


@torch.no_grad()
def input_hessians(masked: MaskedModel, objective: Objective, num_samples: int) -> dict[str, Tensor]:
    """Layer name to X^T X of its inputs X over the objective's first samples, `[K, K]` in group order, float32.

    Takes 4 K^2 bytes a layer: 1.2 GB for a CIFAR-10 DDPM.

    Raises:
        MaskproError: a layer is a grouped convolution or pads by a word, or its inputs are not finite.
    """
    modules = dict(masked.model.named_modules())
    # The Hessian of a shared parameter adds up the inputs of all layers that share it.
    shared = {
        layer.name: [
            module
            for module in modules.values()
            if isinstance(module, nn.Conv2d | nn.Linear) and module.weight is modules[layer.name].weight
        ]
        for layer in masked.layers
    }
    hessians: dict[str, Tensor] = {}

    def add(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        columns = _input_columns(module, inputs[0], masked.layout).float()
        gram = columns.t() @ columns
        hessians[name] = hessians[name].add_(gram) if name in hessians else gram

    with evaluation_mode(masked.model), ExitStack() as hooks:
        for layer in masked.layers:
            module = modules[layer.name]
            if isinstance(module, nn.Conv2d) and (module.groups != 1 or isinstance(module.padding, str)):
                raise MaskproError(
                    f"layer {layer.name} is a grouped convolution or pads by a word; allowed for this mask: any other"
                )
            for every in shared[layer.name]:
                hooks.enter_context(every.register_forward_pre_hook(partial(add, layer.name)))
        for indices in torch.arange(num_samples).split(_BATCH):
            objective.predict(masked.model, objective.batch(indices))
    for layer in masked.layers:
        if layer.name not in hessians:  # never ran: all its weights count alike
            width = math.prod(layer.shape[1:])
            hessians[layer.name] = torch.eye(width, device=masked.base.device)
        if not hessians[layer.name].isfinite().all():
            raise MaskproError(f"inputs of layer {layer.name} are not finite; allowed: finite ones (check the model)")
    return hessians


def _input_columns(module: nn.Module, value: Tensor, layout: Layout) -> Tensor:
    """A layer's inputs as its weights meet them, `[rows, K]` in the order of its groups."""
    if not isinstance(module, nn.Conv2d):
        return value.reshape(-1, value.shape[-1])
    assert not isinstance(module.padding, str)
    patches = functional.unfold(
        value, module.kernel_size, dilation=module.dilation, padding=module.padding, stride=module.stride
    )
    rows = patches.transpose(1, 2).reshape(-1, *module.weight.shape[1:])
    if layout == "channel":
        rows = rows.permute(0, 2, 3, 1)
    return rows.reshape(len(rows), -1)


def extract_masks(
    pruned: nn.Module,
    *,
    pattern: NMPattern,
    layout: Layout,
    dense: nn.Module | None = None,
    nearest_to: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Masks of the layers of a pruned network that hold zeros: True where the weight is not zero.

    Protected layers and layers without zeros are left out. With `dense`, layers equal to the dense network's are too.

    Args:
        dense: the dense network. A zero of its own counts as kept where its group would keep fewer than n otherwise, as a
            mask that keeps a weight of zero leaves a zero.
        nearest_to: the dense network. With it, zeros that are not n:m become the n:m mask that differs in the fewest
            positions; of several such masks, the one that keeps the largest sum of the dense weights' magnitudes.

    Raises:
        MaskproError: no layer holds zeros; or, without `nearest_to`, the zeros of some are not n:m.
    """
    own = {} if dense is None else maskable_layers(dense)
    masks = {
        name: weight.detach() != 0
        for name, weight in maskable_layers(pruned).items()
        if (weight == 0).any() and not (name in own and torch.equal(weight, own[name]))
    }
    if not masks:
        raise MaskproError("model has no zeros in its maskable layers; allowed: a pruned model (maskpro prune makes one)")
    shapes = {name: mask.shape for name, mask in masks.items()}
    if own:
        masks = {name: _with_own_zeros(mask, own[name], pattern, layout) for name, mask in masks.items()}
    if nearest_to is not None:
        weights = maskable_layers(nearest_to)
        fitting = [name for name, shape in shapes.items() if group_width(shape, layout) % pattern.m == 0]
        masks |= {name: _nearest(masks[name], weights[name], pattern, layout) for name in fitting}
    check_layer_masks(masks, shapes, pattern, layout)
    return masks


def _with_own_zeros(mask: Tensor, weight: Tensor, pattern: NMPattern, layout: Layout) -> Tensor:
    """A weight-shaped mask. Groups that keep fewer than n also keep zeros of the dense weight, up to n positions."""
    if group_width(mask.shape, layout) % pattern.m:
        return mask
    kept = group_order(mask, layout).view(-1, pattern.m)
    free = ~kept & (group_order(weight.detach(), layout).view(-1, pattern.m) == 0)
    lacking = pattern.n - kept.sum(dim=1, keepdim=True)
    filled = kept | (free & (free.cumsum(dim=1) <= lacking))
    return weight_view(filled.view(-1), mask.shape, layout).contiguous()


def _nearest(mask: Tensor, weight: Tensor, pattern: NMPattern, layout: Layout) -> Tensor:
    """The n:m mask nearest to a weight-shaped mask."""
    kept = group_order(mask, layout).view(-1, pattern.m)
    size = group_order(weight.detach().double().abs(), layout).view(-1, pattern.m)
    # Kept positions come first, then larger weights.
    chosen = mode(size + kept * (size.amax() + 1), pattern.n)
    return weight_view(chosen.view(-1), mask.shape, layout).contiguous()
