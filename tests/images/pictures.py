"""Small image files for the tests."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(index: int = 0, size: int = 8) -> Image.Image:
    """Seeded random colours."""
    values = np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def fill(folder: Path, count: int, *, first: int = 0, suffix: str = ".png") -> Path:
    """`count` pictures in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        picture(index).save(folder / f"{index:03}{suffix}")
    return folder


def png(values: np.ndarray, *, bits: int = 16, chunks: bytes = b"") -> bytes:
    """A PNG of 8 or 16 bits a channel, `[height, width, channels]`, written here: Pillow writes no 16-bit colour."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in values)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
