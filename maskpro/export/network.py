"""A network with a mask in its weights, as all exports take it."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import singledispatch
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from maskpro.errors import MaskproError
from maskpro.mask_file import MaskFile
from maskpro.masked_model import maskable_layers, model_hash
from maskpro.metrics import masked_copy
from maskpro.pretrained import Pretrained, save_pipeline


@dataclass(frozen=True, kw_only=True)
class ExportedNetwork(ABC):
    """A network of any kind with its mask.

    Attributes:
        masks: the mask; its `base_hash` is the dense network's.
        LIBRARY: what its folders are loaded by.
    """

    masks: MaskFile
    LIBRARY: ClassVar[str]

    @property
    @abstractmethod
    def model(self) -> Any:
        """The network; its weights are masked, removed weights are 0."""

    @abstractmethod
    def with_model(self, model: Any) -> Self:
        """The same with another model, such as one in another dtype."""

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """All that a compressed file needs beside mask and weights, as texts."""

    @abstractmethod
    def save(self, folder: Path) -> str:
        """Write the folder that the network's library loads; returns the function that loads it."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        found: torch.dtype = next(self.model.parameters()).dtype
        return found

    @property
    def state(self) -> dict[str, Tensor]:
        """All weights by name; of several names of one weight the first."""
        first: dict[int, str] = {}
        values: dict[str, Tensor] = self.model.state_dict()
        return {
            name: value
            for name, value in values.items()
            if not value.numel() or first.setdefault(value.data_ptr(), name) == name
        }

    @property
    def dense_bytes(self) -> int:
        """Bytes of all weights, zeros included."""
        return sum(value.numel() * value.element_size() for value in self.state.values())

    def cast(self, dtype: torch.dtype) -> Self:
        """The network with its weights in another dtype.

        Raises:
            MaskproError: a weight is too large for the dtype.
        """
        # Not the method of diffusers, which warns on every cast.
        model: Any = nn.Module.to(copy.deepcopy(self.model), dtype)
        for name, value in model.state_dict().items():
            if not value.isfinite().all():
                raise MaskproError(
                    f"dtype is {dtype_name(dtype)}, in which {name} holds weights that are not finite; allowed for this "
                    "network: bfloat16, float32"
                )
        return self.with_model(model)


@dataclass(frozen=True, kw_only=True)
class MaskedNetwork(ExportedNetwork):
    """A diffusion network with its mask and its noise schedule.

    Attributes:
        scheduler, ema: as in `Pretrained`.
    """

    LIBRARY = "diffusers"
    unet: UNet2DModel
    scheduler: DDPMScheduler
    ema: str

    @property
    def model(self) -> UNet2DModel:
        """The UNet."""
        return self.unet

    def with_model(self, model: Any) -> Self:
        """With another UNet."""
        return replace(self, unet=model)

    def describe(self) -> dict[str, str]:
        """The configs of network and noise schedule."""
        parts = {"config": self.unet, "scheduler_config": self.scheduler}
        return {name: json.dumps(json.loads(part.to_json_string())) for name, part in parts.items()} | {"ema": self.ema}

    def save(self, folder: Path) -> str:
        """A pipeline."""
        save_pipeline(folder, self.unet, self.scheduler, ema=self.ema)
        return "DDPMPipeline.from_pretrained"


@singledispatch
def masked_network(dense: Any, masks: MaskFile) -> Any:
    """A dense network, with all that was read beside it, under a mask that was made for it (`load_masks_of` checks that).

    Raises:
        MaskproError: networks of this kind can't be exported.
    """
    raise MaskproError(f"model is a network of a kind that has no export ({type(dense).__name__}); allowed: one that has")


@masked_network.register
def _(dense: Pretrained, masks: MaskFile) -> MaskedNetwork:
    unet, named = with_masks(dense.unet, masks), for_model(dense.unet, masks)
    return MaskedNetwork(unet=unet, masks=named, scheduler=dense.scheduler, ema=dense.ema)


def for_model(model: nn.Module, masks: MaskFile) -> MaskFile:
    """The masks, bound to the dense model where their file names none."""
    return masks if masks.base_hash else replace(masks, base_hash=model_hash(model))


def with_masks(model: nn.Module, masks: MaskFile) -> Any:
    """A copy of a model in which all weights that the mask removes are 0, without a sign.

    Raises:
        MaskproError: the mask does not fit, or layers share a weight.
    """
    _check_unshared(model, masks.masks)
    copied = masked_copy(model, masks.masks, masks.pattern, masks.layout)
    weights = maskable_layers(copied)
    for name in masks.masks:
        # No view of the copy's flat buffer. A negative weight times 0 is -0, and -0 + 0 is 0.
        weights[name].data = weights[name].data.contiguous() + 0.0
    return copied


def _check_unshared(model: nn.Module, masked: Collection[str]) -> None:
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(parameter.data_ptr(), name)
        if other != name and {part.rpartition(".")[0] for part in (name, other)} & set(masked):
            raise MaskproError(
                f"{other} and {name} of the model are one weight; allowed in an export: a weight of its own for each layer"
            )


def dtype_name(dtype: torch.dtype) -> str:
    """Such as float16."""
    return str(dtype).removeprefix("torch.")
