"""Figures of a network relative to the dense one and the one with the initial mask."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.fidelity import estimate_fidelity, estimate_recovery
from maskpro.masked_model import MaskedModel, maskable_layers
from maskpro.objectives import HeldOutValues
from maskpro.pattern import Layout, NMPattern


def recovery(initial: float, learned: float, dense: float) -> float | None:
    """(L_initial - L_learned) / (L_initial - L_dense): 0 = initial mask, 1 = dense; None where the two are equal."""
    return None if initial == dense else (initial - learned) / (initial - dense) + 0.0  # no -0.0


def loss_improvement(initial: float, learned: float) -> float:
    """(L_initial - L_learned) / L_initial; 0 where nothing changed, even if L_initial is 0."""
    return 0.0 if initial == learned else (initial - learned) / initial if initial else -math.inf


def sparsity(model: nn.Module) -> float:
    """Share of zeros in the weights of the maskable layers, counted in the weights themselves."""
    weights = maskable_layers(model).values()
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def masked_copy(model: nn.Module, masks: Mapping[str, Tensor], pattern: NMPattern, layout: Layout) -> nn.Module:
    """A copy of a dense model with the masks (layer name to bool mask) multiplied into its weights."""
    masked = MaskedModel(copy.deepcopy(model), pattern=pattern, layout=layout, covered=masks.keys())
    masked.set_mask(masked.groups(masks))
    return masked.model


def relative_figures(
    found: Mapping[str, HeldOutValues], initials: Mapping[str, str], *, images: int | None = None
) -> dict[str, dict[str, float | None]]:
    """Network's name to its figures relative to other networks on the same samples: fidelity, and the standard errors.

    Args:
        found: network's name to its losses and errors on the test samples.
        initials: network's name to the name of the network with its initial mask. Recovery also needs "dense" in `found`.
        images: as for `estimate_fidelity`.
    """
    figures: dict[str, dict[str, float | None]] = {}
    for name, initial in initials.items():
        reached = estimate_fidelity(found[initial].errors, found[name].errors, images=images)
        losses, before = found[name].losses, found[initial].losses
        improved = estimate_fidelity(before, losses, images=images)
        recovered = estimate_recovery(before, losses, found["dense"].losses, images=images) if "dense" in found else None
        figures[name] = {
            "fidelity": reached and reached.value,
            "fidelity_error": reached and reached.standard_error,
            "recovery_error": recovered and recovered.standard_error,
            "loss_improvement_error": improved and improved.standard_error,
        }
    return figures


def with_recovery(report: Mapping[str, Any], learned: str) -> dict[str, Any]:
    """An evaluation's report with the figures of the network named `learned` relative to "initial" and "dense".

    These are fidelity, from the test errors, and recovery and loss_improvement, from the test losses, with their standard
    errors (`relative_figures`).

    Raises:
        MaskproError: the report lacks that network, "initial" or "dense".
    """
    models = report["models"]
    for name in ("dense", "initial", learned):
        if name not in models:
            raise MaskproError(f"models lacks {name!r}, which recovery needs; there are: {', '.join(models)}")
    dense, initial, loss = (models[name]["test_loss"] for name in ("dense", "initial", learned))
    return {
        **report,
        **{name: models[learned].get(name) for name in ("fidelity", "fidelity_error")},
        "recovery": recovery(initial, loss, dense),
        "recovery_error": models[learned].get("recovery_error"),
        "loss_improvement": loss_improvement(initial, loss),
        "loss_improvement_error": models[learned].get("loss_improvement_error"),
    }
