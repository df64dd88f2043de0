"""What a run of mask learning did, layer by layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from maskpro.masked_model import MaskedModel
from maskpro.objectives import HeldOutSamples


def layer_changes(masked: MaskedModel, initial: Tensor) -> list[dict[str, Any]]:
    """A row per maskable layer: kept positions of the initial mask (bool `[P / M, M]`) that the mask set now drops."""
    rows = []
    for layer in masked.layers:
        first, now = (mask.reshape(-1)[layer.start : layer.stop] for mask in (initial, masked.mask))
        dropped = int((first & ~now).sum())
        rows.append(
            {
                "layer": layer.name,
                "weights": now.numel(),
                "learned": layer.learned,
                "sparsity": 1 - now.float().mean().item(),
                "changed": dropped,
                "changed_share": dropped / int(first.sum()),
            }
        )
    return rows


def layer_statistics(
    masked: MaskedModel, *, initial: Tensor, learned: Tensor, entropies: Tensor, held_out: HeldOutSamples
) -> list[dict[str, Any]]:
    """A row per learned layer; the model is left with the learned mask.

    Args:
        initial, learned: masks of the learned layers, bool `[G, M]`.
        entropies: entropy of each group's mask distribution under the last logits, in nats, `[G]`.

    Returns:
        changed, changed_share: kept positions of the initial mask that the learned one drops; their share of all kept ones.
        last_entropy: mean over the layer's groups under the last logits (not the learned mask); 0 = decided.
        contribution: rise of the held-out error if this layer alone takes its initial mask again.
    """
    masked.set_mask(learned)
    error = held_out.judge(masked.model).means().error
    rows = []
    size = masked.pattern.m
    for layer in masked.layers:
        if not layer.learned:
            continue
        groups = slice(layer.start // size, layer.stop // size)
        dropped = int((initial[groups] & ~learned[groups]).sum())
        contribution = 0.0
        if dropped:
            reverted = learned.clone()
            reverted[groups] = initial[groups]
            masked.set_mask(reverted)
            contribution = held_out.judge(masked.model).means().error - error
        rows.append(
            {
                "layer": layer.name,
                "weights": layer.stop - layer.start,
                "changed": dropped,
                "changed_share": dropped / int(initial[groups].sum()),
                "last_entropy": entropies[groups].mean().item(),
                "contribution": contribution,
            }
        )
    masked.set_mask(learned)
    return rows
