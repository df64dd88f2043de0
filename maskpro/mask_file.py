"""The mask file: packed bits (one a weight) in safetensors, with pattern, layout, shapes, base-model hash, provenance.

Checksums (CRC-32) of every layer's bits and of the description find damage that leaves a mask n:m. Layer names are module
paths, and never become file names.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
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
from maskpro.masked_model import check_layer_masks, layer_problems
from maskpro.pattern import Layout, NMPattern, parse_layout

FORMAT = "maskpro-mask-2"
_LAYER_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class MaskFile:
    """Masks of a model's layers (bool, in the weights' shapes) and what they were made for and by."""

    pattern: NMPattern
    layout: Layout
    base_hash: str
    masks: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise a MaskproError where a layer's name is not a module path, or a mask is not n:m."""
        for name in self.masks:
            check_layer_name(name)
        check_layer_masks(self.masks, self.shapes, self.pattern, self.layout)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Layer name to shape of its weight."""
        return {name: mask.shape for name, mask in self.masks.items()}


def check_layer_name(name: str) -> None:
    """Raise where a layer's name is not a module path."""
    if not _LAYER_NAME.fullmatch(name):
        raise MaskproError(
            f"a mask file can't hold a layer named {name!r}; allowed: module paths such as down_blocks.0.conv1, of "
            "letters, digits and underscores"
        )


def save_mask_file(path: Path, content: MaskFile) -> None:
    """Check and write a mask file; bits of each mask in the weight's (C-contiguous) order, first bit highest."""
    content.check()
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy())) for name, mask in content.masks.items()}
    metadata = {
        "format": FORMAT,
        "pattern": str(content.pattern),
        "layout": content.layout,
        "base_hash": content.base_hash,
        "shapes": json.dumps({name: list(shape) for name, shape in content.shapes.items()}),
        "checksums": json.dumps({name: zlib.crc32(bits.numpy().tobytes()) for name, bits in packed.items()}),
        "provenance": json.dumps(content.provenance),
    }
    write_described(path, packed, metadata)


def load_mask_file(path: Path) -> MaskFile:
    """Read and check a mask file.

    Raises:
        MaskproError: no such file, not a mask file, damaged, a layer name that is none, or a mask that is not n:m.
    """
    content, problems = inspect_mask_file(path)
    for name, problem in problems.items():
        others = f" (and {len(problems) - 1} layers more)" if len(problems) > 1 else ""
        raise MaskproError(f"mask file {path} is damaged: layer {name} {problem}{others}")
    return content


def inspect_mask_file(path: Path) -> tuple[MaskFile, dict[str, str]]:
    """A mask file's content, and layer name to what is wrong with its mask.

    Raises:
        MaskproError: no such file, not a mask file, or too damaged to tell its layers apart.
    """
    metadata, packed = read_described(path, kind="mask file", format=FORMAT)
    try:
        shapes = {name: torch.Size(shape) for name, shape in json.loads(metadata["shapes"]).items()}
        for shape in shapes.values():
            shape.numel()  # raises where no tensor is so large
        checksums, provenance = (dict(json.loads(metadata[name])) for name in ("checksums", "provenance"))
        base_hash = metadata["base_hash"]
        pattern, layout = NMPattern.parse(metadata["pattern"]), parse_layout(metadata["layout"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MaskproError(f"mask file {path} is damaged: its description can't be read ({error!r})") from error
    for name in [*shapes, *packed]:
        check_layer_name(name)
    unnamed = sorted(packed.keys() - shapes.keys())
    if unnamed or not shapes:
        what = f"it holds {unnamed[0]}, which its description does not name" if unnamed else "it holds no layer"
        raise MaskproError(f"mask file {path} is damaged: {what}")
    content = MaskFile(
        pattern=pattern,
        layout=layout,
        base_hash=base_hash,
        masks={name: _unpack(path, name, packed.get(name), shape) for name, shape in shapes.items()},
        provenance=provenance,
    )
    problems = layer_problems(content.masks, content.shapes, content.pattern, content.layout)
    for name in shapes:
        if checksums.get(name) != zlib.crc32(packed[name].numpy().tobytes()):
            problems[name] = "does not match its checksum" + (f" and {problems[name]}" if name in problems else "")
    return content, problems


def write_described(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, str]) -> None:
    """Write a safetensors file with a description, of which `read_described` checks the checksum."""
    with atomic_path(path) as temporary:
        metadata = {**description, "checksum": _description_checksum(description)}
        save_file(dict(tensors), temporary, metadata=metadata)


def read_described(path: Path, *, kind: str, format: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(description, tensors) of a file of that format, whose description is whole; `kind` is its name in errors."""
    if not path.is_file():
        raise MaskproError(f"no {kind} {path}")
    path.open("rb").close()  # safetensors' own error for a file that can't be read says that there is none
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise MaskproError(f"{kind} {path} is damaged or not safetensors ({error})") from error
    if metadata.get("format") != format:
        raise MaskproError(f"{path} is not a {kind}: its format is {metadata.get('format')!r}; allowed: {format}")
    if metadata.pop("checksum", None) != _description_checksum(metadata):
        raise MaskproError(f"{kind} {path} is damaged: its description does not match its checksum")
    return metadata, tensors


def _description_checksum(metadata: Mapping[str, str]) -> str:
    return f"{zlib.crc32(json.dumps(metadata, sort_keys=True).encode()):08x}"


def _unpack(path: Path, name: str, bits: Tensor | None, shape: torch.Size) -> Tensor:
    count = shape.numel()
    if bits is None or bits.dtype != torch.uint8 or bits.shape != ((count + 7) // 8,):
        raise MaskproError(f"mask file {path} is damaged: layer {name} does not hold {count} bits")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool)).view(shape)
