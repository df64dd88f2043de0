"""Layers that stay dense although they are not protected, and how much of the network they hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from maskpro.masked_model import MaskedModel, maskable_layers, width_problem
from maskpro.pattern import Layout, NMPattern

_LEFT_OUT = "is left out by the mask"


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """A Conv2d or Linear layer without a mask: its weights, its multiply-adds for a sample, and why it stays dense."""

    layer: str
    weights: int
    multiply_adds: int
    why: str


@dataclass(frozen=True, kw_only=True)
class DenseLayers:
    """The layers that stay dense, without the protected ones; shares relate to all Conv2d and Linear layers."""

    layers: tuple[DenseLayer, ...]
    weights_share: float
    multiply_adds_share: float

    def describe(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self) | {"layers": [asdict(layer) for layer in self.layers]}

    def line(self) -> str:
        """One sentence for people to read; "" where every layer has a mask."""
        if not self.layers:
            return ""
        first = self.layers[0]
        return (
            f"{len(self.layers)} layers stay dense, with {self.weights_share:.1%} of the weights and "
            f"{self.multiply_adds_share:.1%} of the multiply-adds, such as {first.layer}, which {first.why}"
        )


def dense_layers(
    model: nn.Module,
    masked: Collection[str],
    *,
    pattern: NMPattern,
    layout: Layout,
    run: Callable[[], object],
    reasons: Mapping[str, str] | None = None,
) -> DenseLayers:
    """The maskable layers of a network that are not among the `masked` ones.

    Args:
        reasons: why layers stay dense, by name, where it is known, as of a `MaskedModel`.
        run: runs the network on one sample, for the multiply-adds.
    """
    costs = multiply_adds(model, run)
    sizes = {name: module.weight.numel() for name, module in model.named_modules() if name in costs}
    rows = tuple(
        DenseLayer(
            layer=name,
            weights=weight.numel(),
            multiply_adds=costs.get(name, 0),
            why=(reasons or {}).get(name) or width_problem(weight.shape, pattern, layout) or _LEFT_OUT,
        )
        for name, weight in maskable_layers(model).items()
        if name not in masked
    )
    return DenseLayers(
        layers=rows,
        weights_share=sum(row.weights for row in rows) / max(1, sum(sizes.values())),
        multiply_adds_share=sum(row.multiply_adds for row in rows) / max(1, sum(costs.values())),
    )


@torch.no_grad()
def multiply_adds(model: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """Name of every Conv2d and Linear layer to its number of multiplications while the network runs, zeros counted."""
    counts: dict[str, int] = {}

    def count(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        # Every weight multiplies once at each position of its output channel.
        weight = module.get_parameter("weight")
        counts[name] = counts.get(name, 0) + weight.numel() * (output.numel() // weight.shape[0])

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                hooks.enter_context(module.register_forward_hook(partial(count, name)))
        run()
    return counts


def dense_rows(masked: MaskedModel) -> list[dict[str, Any]]:
    """A row of `layers.csv` for each maskable layer without a mask; `why_dense` is empty for the others."""
    masks = {layer.name for layer in masked.layers}
    return [
        {
            "layer": name,
            "weights": weight.numel(),
            "learned": False,
            "sparsity": (weight == 0).float().mean().item(),
            "changed": 0,
            "changed_share": 0.0,
            "contribution": 0.0,
            "why_dense": masked.dense.get(name, _LEFT_OUT),
        }
        for name, weight in maskable_layers(masked.model).items()
        if name not in masks
    ]
