"""Ranges of pixel values, moves to a device, and the seeded generator behind all random choices about data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Stream of the draws for a whole split; smaller numbers are streams of single samples.
SPLIT_STREAM = 2**63


def philox(seed: int, stream: int) -> np.random.Generator:
    """Counter-based generator of (seed, stream); equal on every machine and device, unlike torch's generators."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; a copy from the CPU to a GPU blocks neither."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_model_range(images: Tensor) -> Tensor:
    """uint8 images (0 to 255) as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] (clamped) as uint8, 0 to 255; the inverse of `to_model_range`."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
