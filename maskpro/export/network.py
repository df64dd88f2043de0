"""A network with a mask in its weights, as all exports take it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn

from maskpro.errors import MaskproError
from maskpro.mask_file import MaskFile
from maskpro.masked_model import maskable_layers, model_hash
from maskpro.metrics import masked_copy
from maskpro.pretrained import Pretrained


@dataclass(frozen=True, kw_only=True)
class MaskedNetwork:
    """A diffusion network with its mask and its noise schedule.

    Attributes:
        unet: its weights are masked; removed weights are 0.
        masks: the mask; its `base_hash` is the dense network's.
        scheduler, ema: as in `Pretrained`.
    """

    unet: UNet2DModel
    masks: MaskFile
    scheduler: DDPMScheduler
    ema: str

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        found: torch.dtype = next(self.unet.parameters()).dtype
        return found

    @property
    def dense_bytes(self) -> int:
        """Bytes of all weights, zeros included."""
        return sum(value.numel() * value.element_size() for value in self.unet.state_dict().values())

    def cast(self, dtype: torch.dtype) -> MaskedNetwork:
        """The network with its weights in another dtype.

        Raises:
            MaskproError: a weight is too large for the dtype.
        """
        # Not the method of diffusers, which warns on every cast.
        unet: Any = nn.Module.to(copy.deepcopy(self.unet), dtype)
        for name, value in unet.state_dict().items():
            if not value.isfinite().all():
                raise MaskproError(
                    f"dtype is {dtype_name(dtype)}, in which {name} holds weights that are not finite; allowed for this "
                    "network: bfloat16, float32"
                )
        return replace(self, unet=unet)


def masked_network(dense: Pretrained, masks: MaskFile) -> MaskedNetwork:
    """A dense network under a mask that was made for it (`load_masks_of` checks that)."""
    named = masks if masks.base_hash else replace(masks, base_hash=model_hash(dense.unet))
    return MaskedNetwork(unet=with_masks(dense.unet, masks), masks=named, scheduler=dense.scheduler, ema=dense.ema)


def with_masks(model: nn.Module, masks: MaskFile) -> Any:
    """A copy of a model in which all weights that the mask removes are 0, without a sign.

    Raises:
        MaskproError: the mask does not fit, or layers share a weight.
    """
    _check_unshared(model)
    copied = masked_copy(model, masks.masks, masks.pattern, masks.layout)
    weights = maskable_layers(copied)
    for name in masks.masks:
        # No view of the copy's flat buffer. A negative weight times 0 is -0, and -0 + 0 is 0.
        weights[name].data = weights[name].data.contiguous() + 0.0
    return copied


def _check_unshared(model: nn.Module) -> None:
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(parameter.data_ptr(), name)
        if other != name:
            raise MaskproError(
                f"{other} and {name} of the model are one weight; allowed in an export: a weight of its own for each layer"
            )


def dtype_name(dtype: torch.dtype) -> str:
    """Such as float16."""
    return str(dtype).removeprefix("torch.")
