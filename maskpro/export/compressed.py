"""The compressed file: a masked network without its zeros, in one safetensors file that needs no other.

The tensor `values` holds the kept weights of all masked layers: layer by layer as `layers` lists them, each in the order of
the groups (`pattern.group_order`). The tensor `positions` says where in its group each of them was, in bits, the highest
first. A group has n indices of ceil(log2 m) bits, or the m bits of its mask where that is shorter. All other weights stand
there under their own names. Removed weights come back as 0, kept ones bit for bit. The description (the metadata) has
pattern, layout, the dense network's hash, config, noise schedule, and checksums (CRC-32).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from maskpro.errors import MaskproError
from maskpro.export.language_model import KIND, language_model_of
from maskpro.export.network import ExportedNetwork, MaskedNetwork, dtype_name
from maskpro.mask_file import MaskFile, read_described, write_described
from maskpro.noise_schedule import read_noise_schedule
from maskpro.pattern import Layout, NMPattern, group_order, parse_layout, weight_view
from maskpro.pretrained import check_unet, empty_unet, fill_unet

FORMAT = "maskpro-compressed-1"
_DTYPES = {dtype_name(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32)}


def save_compressed(path: Path, network: ExportedNetwork) -> None:
    """Write a network into a compressed file, in the dtype of its weights."""
    masks, dense = network.masks, network.state
    masks.check()
    values, bits = [], []
    for name, mask in masks.masks.items():
        groups = group_order(mask, masks.layout).view(-1, masks.pattern.m)
        values.append(group_order(dense.pop(f"{name}.weight"), masks.layout).view(-1, masks.pattern.m)[groups])
        bits.append(position_bits(groups, masks.pattern))
    tensors = {name: value.contiguous() for name, value in dense.items()}
    tensors |= {"values": torch.cat(values), "positions": torch.from_numpy(np.packbits(np.concatenate(bits)))}
    description = {
        "format": FORMAT,
        "pattern": str(masks.pattern),
        "layout": masks.layout,
        "positions": positions_line(masks.pattern),
        "dtype": dtype_name(network.dtype),
        "base_hash": masks.base_hash,
        "layers": json.dumps({name: list(shape) for name, shape in masks.shapes.items()}),
        **network.describe(),
        "provenance": json.dumps(masks.provenance),
        "tensors_checksum": tensors_checksum(tensors),
    }
    write_described(path, tensors, description)


def is_compressed(path: Path) -> bool:
    """Whether a file says that it is a compressed one."""
    try:
        with safe_open(path, framework="pt") as opened:
            return (opened.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def load_compressed(path: Path | str) -> dict[str, Tensor]:
    """The state dict of a compressed file's network, dense with zeros, in the file's dtype.

    Raises:
        MaskproError: no such file, another kind of file, or damaged.
    """
    return _read(Path(path))[1]


def load_network(path: Path | str) -> ExportedNetwork:
    """The network of a compressed file, in the file's dtype.

    Raises:
        MaskproError: no such file, another kind of file, damaged, or weights that don't fit its config.
    """
    path = Path(path)
    description, state, masks = _read(path)
    try:
        dtype = _DTYPES[description["dtype"]]
        if description.get("kind") == KIND:
            return language_model_of(dict(json.loads(description["config"])), state, masks, str(path)).cast(dtype)
        config, scheduler_config = (dict(json.loads(description[name])) for name in ("config", "scheduler_config"))
        ema = description["ema"]
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its description can't be read ({error!r})") from error
    scheduler, _ = read_noise_schedule(scheduler_config, named_class=None)
    unet, _ = empty_unet(config, str(path), "its description")
    fill_unet(unet, state, str(path))
    check_unet(unet, scheduler, str(path))
    unet = unet.eval().requires_grad_(False)
    return MaskedNetwork(unet=unet, masks=masks, scheduler=scheduler, ema=ema).cast(dtype)


def positions_line(pattern: NMPattern) -> str:
    """How the positions of kept weights are stored, in words."""
    width = _index_bits(pattern)
    return f"{pattern.m} bits of mask a group" if width is None else f"indices of {width} bits"


def _index_bits(pattern: NMPattern) -> int | None:
    """Bits of an index; None where the mask of a group is shorter than its n indices."""
    width = (pattern.m - 1).bit_length()
    return width if pattern.n * width <= pattern.m else None


def position_bits(groups: Tensor, pattern: NMPattern) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The positions of bool groups `[G, M]`, a bit a byte."""
    width = _index_bits(pattern)
    if width is None:
        return groups.cpu().numpy().reshape(-1).view(np.uint8)
    positions = groups.nonzero()[:, 1].cpu().numpy()
    return (positions[:, None] >> np.arange(width)[::-1] & 1).astype(np.uint8).reshape(-1)


def kept_groups(bits: np.ndarray[Any, np.dtype[np.uint8]], count: int, pattern: NMPattern) -> Tensor:
    """Inverse of `position_bits` for `count` groups; what is not n ascending positions comes back as no n:m group."""
    width = _index_bits(pattern)
    if width is None:
        return torch.from_numpy(bits.reshape(count, pattern.m).astype(bool))
    positions = torch.from_numpy(bits.reshape(count, pattern.n, width) @ (1 << np.arange(width)[::-1]))
    groups = torch.zeros(count, 1 << width, dtype=torch.bool).scatter_(1, positions, True)
    groups[(positions.diff(dim=1) <= 0).any(dim=1)] = False
    return groups[:, : pattern.m]


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor], MaskFile]:
    """Description, state dict and mask of a compressed file."""
    description, tensors = read_described(path, kind="compressed file", format=FORMAT)
    if description.get("tensors_checksum") != tensors_checksum(tensors):
        raise _damaged(path, "its weights do not match their checksum")
    try:
        state, content = _unpacked(description, tensors)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(path, f"it can't be unpacked ({error!r})") from error
    return description, state, content


def _unpacked(description: Mapping[str, str], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], MaskFile]:
    pattern, layout = NMPattern.parse(description["pattern"]), parse_layout(description["layout"])
    shapes = {name: torch.Size(shape) for name, shape in json.loads(description["layers"]).items()}
    counts = [shape.numel() // pattern.m for shape in shapes.values()]
    values = tensors["values"].split([pattern.n * count for count in counts])
    width = pattern.n * (_index_bits(pattern) or 0) or pattern.m
    bits = np.split(np.unpackbits(tensors["positions"].numpy()), width * np.cumsum(counts))
    state = {name: value for name, value in tensors.items() if name not in ("values", "positions")}
    masks = {}
    for (name, shape), count, kept, positions in zip(shapes.items(), counts, values, bits, strict=False):
        groups = kept_groups(positions, count, pattern)
        weight = torch.zeros(groups.shape, dtype=kept.dtype)
        weight[groups] = kept
        masks[name], state[f"{name}.weight"] = _as_stored(groups, shape, layout), _as_stored(weight, shape, layout)
    provenance = dict(json.loads(description["provenance"]))
    base_hash = description["base_hash"]
    content = MaskFile(pattern=pattern, layout=layout, base_hash=base_hash, masks=masks, provenance=provenance)
    content.check()
    return state, content


def _as_stored(groups: Tensor, shape: torch.Size, layout: Layout) -> Tensor:
    return weight_view(groups.reshape(-1), shape, layout).clone(memory_format=torch.contiguous_format)


def tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of all values, by names in order."""
    found = 0
    for _, value in sorted(tensors.items()):
        found = zlib.crc32(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes(), found)
    return f"{found:08x}"


def _damaged(path: Path, problem: str) -> MaskproError:
    return MaskproError(f"compressed file {path} is damaged: {problem}")
