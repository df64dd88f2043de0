"""Colours of 16 bits a channel. Pillow gives the upper 8 bits; this module reads all 16 where it can."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LARGEST = 65535

# TIFF's tag of the bits a channel.
_BITS_TAG = 258
_PLANES_TAG = 284
# TIFF's tag of the meaning of values, and its value where the lowest one is white.
_PHOTOMETRIC_TAG = 262
_LOWEST_IS_WHITE = 0
# TIFF's tag of the kind of numbers, and its value for signed ones.
_KIND_TAG = 339
_SIGNED = 2
# Pillow's raw modes of 16 bits that exist in both byte orders.
_BOTH_ORDERS = [f"{mode};16{order}" for mode in ("RGB", "RGBA") for order in "BLN"]
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def tiff_bits(opened: Image.Image) -> int | None:
    """Bits a channel of a TIFF, None for other formats."""
    bits = _tiff_tag(opened, _BITS_TAG)
    return None if bits is None else int(max(bits) if isinstance(bits, tuple) else bits)


def is_signed(opened: Image.Image) -> bool:
    """Whether a TIFF's integers are signed; Pillow reads those of 8 bits as if they weren't."""
    kind = _tiff_tag(opened, _KIND_TAG)
    return bool(_SIGNED in kind if isinstance(kind, tuple) else kind == _SIGNED)


def lowest_is_white(opened: Image.Image) -> bool:
    """Whether the lowest value of a TIFF is white; Pillow turns such values of up to 8 bits around, and no others."""
    return bool(_tiff_tag(opened, _PHOTOMETRIC_TAG) == _LOWEST_IS_WHITE)


def _tiff_tag(opened: Image.Image, tag: int) -> Any:
    return opened.tag_v2.get(tag) if hasattr(opened, "tag_v2") and opened.format == "TIFF" else None


def deep_tiles(opened: Image.Image) -> list[Any]:
    """The tiles whose upper 8 bits Pillow will read; must be called before it loads them. [] for other images."""
    if opened.mode.startswith(("I", "F")):
        return []
    tiles = list(getattr(opened, "tile", ()))
    is_deep = (tiff_bits(opened) or 8) > 8 or (opened.format == "PNG" and _all_of_16_bits(tiles))
    return tiles if is_deep else []


def deep_values(opened: Image.Image, path: Path, tiles: list[Any]) -> np.ndarray | None:
    """All 16 bits of the colours in `tiles`, uint16 `[height, width, channels]`; None where they can't be read.

    Pillow reads them in two passes. In the second one the byte order is swapped, so the lower byte is read as the upper
    one. This fails for grey with transparency and for compressed planes. There Pillow's upper 8 bits are less than one
    level below the exact value.

    Raises:
        ValueError: the colours lie in uncompressed separate planes, which Pillow reads as if they had 8 bits.
    """
    if not _all_of_16_bits(tiles):
        raise ValueError("16-bit colours in separate planes, which Pillow reads wrongly; save it with interleaved channels")
    if any(_raw_mode(tile) not in _BOTH_ORDERS for tile in tiles) or _has_planes(opened):
        return None
    with Image.open(path, formats=[str(opened.format)]) as lower:
        lower.tile = [tile._replace(args=_swapped(tile.args)) for tile in tiles]
        low = np.asarray(lower)
    values: np.ndarray = np.asarray(opened).astype(np.uint16) << 8 | low
    return values


def _has_planes(opened: Image.Image) -> bool:
    return bool(hasattr(opened, "tag_v2") and opened.tag_v2.get(_PLANES_TAG) == 2)


def _all_of_16_bits(tiles: list[Any]) -> bool:
    return bool(tiles) and all(_raw_mode(tile)[:-1].endswith(";16") for tile in tiles)


def _raw_mode(tile: Any) -> str:
    return tile.args if isinstance(tile.args, str) else str((tile.args or ("",))[0])


def _swapped(args: Any) -> Any:
    """A decoder's arguments with the other byte order."""
    if isinstance(args, str):
        return args[:-1] + _OTHER_ORDER[args[-1]]
    return (_swapped(args[0]), *args[1:])
