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


def tiff(
    values: np.ndarray, *, order: str = "<", is_compressed: bool = False, has_planes: bool = False, orientation: int = 1
) -> bytes:
    """A TIFF of 16-bit colours `[height, width, 3 or 4]`, little- or big-endian, which Pillow doesn't write."""
    height, width, channels = values.shape
    planes = values.transpose(2, 0, 1) if has_planes else [values]
    strips = [plane.astype(f"{order}u2").tobytes() for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if is_compressed else strips
    body, offsets = b"", []
    for strip in strips:
        offsets.append(8 + len(body))
        body += strip + b"\0" * (len(strip) % 2)
    entries = []
    for tag, kind, numbers in [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [16] * channels),
        (259, "H", [8 if is_compressed else 1]),
        (262, "H", [2]),
        (273, "I", offsets),
        (274, "H", [orientation]),
        (277, "H", [channels]),
        (278, "I", [height]),
        (279, "I", [len(strip) for strip in strips]),
        (284, "H", [2 if has_planes else 1]),
        *([(338, "H", [2])] if channels == 4 else []),
    ]:
        data = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        if len(data) > 4:
            data, body = struct.pack(f"{order}I", 8 + len(body)), body + data
        code = {"H": 3, "I": 4}[kind]
        entries.append(struct.pack(f"{order}HHI", tag, code, len(numbers)) + data.ljust(4, b"\0"))
    magic = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(body))
    return magic + body + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + b"\0" * 4


def grey_tiff(values: np.ndarray, *, kind: int = 1, photometric: int = 1) -> bytes:
    """A TIFF of one channel: kind 1 unsigned, 2 signed, 3 floats; photometric 0: the lowest value is white."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    numbers = [(256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, photometric), (273, 8)]
    numbers += [(277, 1), (278, height), (279, len(data)), (339, kind)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in numbers)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(numbers)) + entries + b"\0" * 4
