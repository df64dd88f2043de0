"""What it is worth to keep the most sensitive layers dense, against the share of multiply-adds that stay sparse.

A layer's sensitivity is the error of the dense network with that layer alone masked, as Han et al. 2015 ("Learning both
Weights and Connections", section 5) measure it. What a layer alone adds to the error of a wholly masked network is no use:
errors of layers cancel each other, and a learned mask of all layers gets worse where one of them is made dense.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch

from maskpro.dense_layers import multiply_adds
from maskpro.fidelity import fidelity
from maskpro.masked_model import MaskedLayer, MaskedModel
from maskpro.objectives import HeldOutSamples
from maskpro.workload import Workload

# Held-out samples by which layers are ordered, and by which the curve is measured; and its points.
_ORDER_SAMPLES, _CURVE_SAMPLES, _MOST_POINTS = 64, 256, 16


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
    costs = multiply_adds(workload.model, workload.run_once)
    masked = MaskedModel(
        copy.deepcopy(workload.model).to(device),
        pattern=initial.pattern,
        layout=initial.layout,
        covered=[layer.name for layer in initial.layers],
    )
    mask = masked.groups(initial.layer_masks()).view(-1)
    held_out = workload.held_out_samples("validation", device)
    few, many = held_out.first(_ORDER_SAMPLES), held_out.first(_CURVE_SAMPLES)

    def error(samples: HeldOutSamples, sparse: Collection[MaskedLayer]) -> float:
        kept = torch.ones_like(mask)
        for layer in sparse:
            kept[layer.start : layer.stop] = mask[layer.start : layer.stop]
        masked.set_mask(kept)
        return samples.judge(masked.model).means().error

    sensitivity = {layer: error(few, [layer]) / max(1, costs.get(layer.name, 0)) for layer in masked.layers}
    order = sorted(sensitivity, key=lambda layer: -sensitivity[layer])
    counts = torch.linspace(0, len(order), min(_MOST_POINTS, len(order) + 1)).round().long().tolist()
    rows: list[dict[str, Any]] = []
    for before, count in zip([0, *counts[:-1]], counts, strict=True):
        found = error(many, order[count:])
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
