"""The mask file: packed bits (one a weight) in safetensors, with pattern, layout, shapes, base-model hash, provenance."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskpro.errors import MaskproError
from maskpro.files import atomic_path
from maskpro.masked_model import check_layer_masks
from maskpro.pattern import Layout, NMPattern, parse_layout

FORMAT = "maskpro-mask-1"


@dataclass(frozen=True, kw_only=True)
class MaskFile:
    """Masks of a model's layers (bool, in the weights' shapes) and what they were made for and by."""

    pattern: NMPattern
    layout: Layout
    base_hash: str
    masks: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise a MaskproError where a mask is not n:m."""
        check_layer_masks(self.masks, {name: mask.shape for name, mask in self.masks.items()}, self.pattern, self.layout)


def save_mask_file(path: Path, content: MaskFile) -> None:
    """Check and write a mask file; bits of each mask in the weight's (C-contiguous) order, first bit highest."""
    content.check()
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy())) for name, mask in content.masks.items()}
    metadata = {
        "format": FORMAT,
        "pattern": str(content.pattern),
        "layout": content.layout,
        "base_hash": content.base_hash,
        "shapes": json.dumps({name: list(mask.shape) for name, mask in content.masks.items()}),
        "provenance": json.dumps(content.provenance),
    }
    with atomic_path(path) as temporary:
        save_file(packed, temporary, metadata=metadata)


def load_mask_file(path: Path) -> MaskFile:
    """Read and check a mask file.

    Raises:
        MaskproError: no such file, not a mask file, damaged, or a mask that is not n:m.
    """
    if not path.is_file():
        raise MaskproError(f"no mask file {path}")
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            packed = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise MaskproError(f"mask file {path} is damaged or not safetensors ({error})") from error
    if metadata.get("format") != FORMAT:
        raise MaskproError(f"{path} is not a mask file: its format is {metadata.get('format')!r}; allowed: {FORMAT}")
    try:
        shapes = {name: torch.Size(shape) for name, shape in json.loads(metadata["shapes"]).items()}
        provenance = json.loads(metadata["provenance"])
        base_hash = metadata["base_hash"]
    except (KeyError, TypeError, ValueError) as error:
        raise MaskproError(f"mask file {path} is damaged: its description can't be read ({error!r})") from error
    content = MaskFile(
        pattern=NMPattern.parse(metadata.get("pattern", "")),
        layout=parse_layout(metadata.get("layout", "")),
        base_hash=base_hash,
        masks={name: _unpack(path, name, packed.get(name), shape) for name, shape in shapes.items()},
        provenance=provenance,
    )
    content.check()
    return content


def _unpack(path: Path, name: str, bits: Tensor | None, shape: torch.Size) -> Tensor:
    count = shape.numel()
    if bits is None or bits.dtype != torch.uint8 or bits.shape != ((count + 7) // 8,):
        raise MaskproError(f"mask file {path} is damaged: layer {name} does not hold {count} bits")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).view(shape)
