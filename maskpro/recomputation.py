"""Gradient checkpointing (Chen et al., arXiv 1604.06174): a block's activations are computed again in the backward pass.

Of each block only the inputs are kept. Chen et al. keep those of every few layers; here a block is an element of the
network's own lists of modules, such as a language model's layer or a UNet's down block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from maskpro.errors import MaskproError
from maskpro.masked_model import MaskedModel


def recomputable_blocks(masked: MaskedModel) -> list[nn.Module]:
    """The outermost elements of lists of modules that hold learned layers.

    Raises:
        MaskproError: there are none.
    """
    modules, found = dict(masked.model.named_modules()), {}
    for layer in masked.layers:
        parts = layer.name.split(".") if layer.learned else []
        for end in range(1, len(parts)):
            if isinstance(modules[".".join(parts[:end])], nn.ModuleList):
                name = ".".join(parts[: end + 1])
                found[name] = modules[name]
                break
    if not found:
        raise MaskproError("gradient_checkpointing is True with a model that has no list of blocks; allowed: False")
    return list(found.values())


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Context in which these blocks keep no activations for the backward pass, which may run after it."""
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        # Networks run in evaluation mode and draw nothing, so that there is no random state to keep.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
