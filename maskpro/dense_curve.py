"""What it is worth to keep the most sensitive layers dense, against the share of multiply-adds that stay sparse.

A layer's sensitivity is the error of the dense network with that layer alone masked, as Han et al. 2015 ("Learning both
Weights and Connections", section 5) measure it. What a layer alone adds to the error of a wholly masked network is no use:
errors of layers cancel each other, and a learned mask of all layers gets worse where one of them is made dense.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection
from typing import Any

import torch

from maskpro.dense_layers import multiply_adds
from maskpro.fidelity import fidelity
from maskpro.machine.process import Say
from maskpro.masked_model import MaskedLayer, MaskedModel
from maskpro.objectives import HeldOutSamples
from maskpro.workload import Workload

# Held-out samples by which layers are ordered, and by which the curve is measured; and its points.
_ORDER_SAMPLES, _CURVE_SAMPLES, _MOST_POINTS = 64, 256, 16
# Between two lines of progress.
_QUIET_SECONDS = 10.0


class _Sensitivity:
    """The dense network, of which any layers can be masked as an initial mask has them."""

    def __init__(self, workload: Workload, initial: MaskedModel, device: torch.device):
        self.costs = multiply_adds(workload.model, workload.run_once)
        self.masked = MaskedModel(
            copy.deepcopy(workload.model).to(device),
            pattern=initial.pattern,
            layout=initial.layout,
            covered=[layer.name for layer in initial.layers],
        )
        self._mask = self.masked.groups(initial.layer_masks()).view(-1)
        self.held_out = workload.held_out_samples("validation", device)

    def error(self, samples: HeldOutSamples, sparse: Collection[MaskedLayer]) -> float:
        """Error where these layers alone are masked."""
        kept = torch.ones_like(self._mask)
        for layer in sparse:
            kept[layer.start : layer.stop] = self._mask[layer.start : layer.stop]
        self.masked.set_mask(kept)
        return samples.judge(self.masked.model).means().error

    def order(self, layers: Collection[MaskedLayer], say: Say | None = None) -> list[MaskedLayer]:
        """The layers by their sensitivity per multiply-add, the highest first."""
        few = self.held_out.first(_ORDER_SAMPLES)
        found: dict[MaskedLayer, float] = {}
        started = last = time.monotonic()
        for number, layer in enumerate(layers, 1):
            found[layer] = self.error(few, [layer]) / max(1, self.costs.get(layer.name, 0))
            now = time.monotonic()
            if say is not None and now - last >= _QUIET_SECONDS and number < len(layers):
                last = now
                seconds = (now - started) / number * (len(layers) - number)
                say(f"how sensitive layers are: {number} of {len(layers)}, about {seconds:.0f} s left")
        return sorted(found, key=lambda layer: -found[layer])


def sensitive_first(workload: Workload, initial: MaskedModel, *, device: torch.device, say: Say) -> list[str]:
    """The learned layers of an initial mask, the most sensitive per multiply-add first.

    Args:
        initial: copy of the workload's network with the mask.
        say: hears what is being done.
    """
    learned = {layer.name for layer in initial.layers if layer.learned}
    say(f"how sensitive each layer is, for num_dense: {len(learned)} layers, each alone masked on {_ORDER_SAMPLES} samples")
    judge = _Sensitivity(workload, initial, device)
    layers = [layer for layer in judge.masked.layers if layer.name in learned]
    return [layer.name for layer in judge.order(layers, say)]


def dense_curve(workload: Workload, initial: MaskedModel, *, device: torch.device) -> list[dict[str, Any]]:
    """Fidelity of an initial mask whose most sensitive layers are dense, for more and more of these.

    Layers are made dense in the order of their sensitivity per multiply-add.

    Args:
        initial: copy of the workload's network with the mask.

    Returns:
        num_dense: of the mask's layers.
        layers: those that are dense in this row and not in the one before, with blanks between the names.
        sparse_multiply_adds_share: of all Conv2d and Linear layers' multiply-adds those in layers that are still sparse.
        val_error, fidelity: on 256 validation samples; fidelity is None if the mask changes no output.
    """
    judge = _Sensitivity(workload, initial, device)
    order, many, costs = judge.order(judge.masked.layers), judge.held_out.first(_CURVE_SAMPLES), judge.costs
    counts = torch.linspace(0, len(order), min(_MOST_POINTS, len(order) + 1)).round().long().tolist()
    rows: list[dict[str, Any]] = []
    for before, count in zip([0, *counts[:-1]], counts, strict=True):
        found = judge.error(many, order[count:])
        sparse = sum(costs.get(layer.name, 0) for layer in order[count:])
        rows.append(
            {
                "num_dense": count,
                "layers": " ".join(layer.name for layer in order[before:count]),
                "sparse_multiply_adds_share": sparse / max(1, sum(costs.values())),
                "val_error": found,
                "fidelity": fidelity(rows[0]["val_error"] if rows else found, found),
            }
        )
    return rows
