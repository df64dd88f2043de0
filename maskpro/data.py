"""Calibration samples.

A calibration sample is an (image, timestep, noise) triple and a pure function of (seed, index): batch size, order,
resuming and device type never change it, so every trial and every model sees the same triples.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskpro.errors import MaskproError

# Normal numbers of a batch that are worth a thread of their own (half a millisecond).
_DRAWN_BY_A_THREAD = 50_000
# Stream number of the draws that belong to a whole split rather than to one sample index.
_SPLIT_STREAM = 2**63


@dataclass(frozen=True, kw_only=True)
class DiffusionBatch:
    """Calibration samples: images `[B, C, H, W]` in [-1, 1], timesteps `[B]` (int64), noise like images, weights `[B]`."""

    images: Tensor
    timesteps: Tensor
    noise: Tensor
    weights: Tensor


def philox(seed: int, stream: int) -> np.random.Generator:
    """Counter-based generator of (seed, stream); equal on every machine and device, unlike torch's generators."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


class CalibrationSamples:
    """Diffusion triples over a set of images (uint8 `[count, C, H, W]`), one for every index >= 0.

    Sample i shows image `order[i % count]` of a seeded permutation, so there may be more samples than images.
    Timesteps are uniform (training), or, with `strata`, sample i < strata falls in a stratum of the schedule of its own
    (held-out sets of `strata` samples).

    With `shares` the timesteps are importance samples: that share of them falls in each of so many equal parts of the
    schedule, and a sample's weight, the uniform density over theirs, keeps the mean of a weighted loss what it was.
    Weights are 1 otherwise.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        num_train_timesteps: int,
        seed: int,
        strata: int | None = None,
        shares: Sequence[float] | None = None,
    ):
        if len(images) == 0:
            raise MaskproError("images is empty; at least one image is needed")
        self._images = images
        self._seed = seed
        self._num_train_timesteps = num_train_timesteps
        split_draws = philox(seed, _SPLIT_STREAM)
        self._order = torch.from_numpy(split_draws.permutation(len(images)))
        self._strata = None if strata is None else split_draws.permutation(strata)
        self._shares = np.array([1.0] if shares is None else shares)
        self._ends = self._shares.cumsum()

    def batch(self, indices: Tensor) -> DiffusionBatch:
        """The samples of `indices` (`[B]`, int64), on the CPU."""
        noise = np.empty((len(indices), *self._images.shape[1:]), dtype=np.float32)
        timesteps = np.empty(len(indices), dtype=np.int64)
        weights = np.empty(len(indices), dtype=np.float32)

        def draw(places: range) -> None:
            for place in places:
                timesteps[place], weights[place] = self._draw(int(indices[place]), noise[place])

        threads = min(torch.get_num_threads(), -(-noise.size // _DRAWN_BY_A_THREAD))
        if threads <= 1:
            draw(range(len(indices)))
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(draw, (range(first, len(indices), threads) for first in range(threads))))
        chosen = self._order[indices % len(self._images)]
        return DiffusionBatch(
            images=to_model_range(self._images[chosen]),
            timesteps=torch.from_numpy(timesteps),
            noise=torch.from_numpy(noise),
            weights=torch.from_numpy(weights),
        )

    def _draw(self, index: int, noise: np.ndarray) -> tuple[int, float]:
        """Fill a sample's noise; its timestep and weight."""
        draws = philox(self._seed, index)
        position = draws.random()
        if self._strata is not None:
            position = (self._strata[index] + position) / len(self._strata)
        draws.standard_normal(dtype=np.float32, out=noise)
        parts = len(self._shares)
        if parts == 1:
            return int(position * self._num_train_timesteps), 1.0
        part = min(int(self._ends.searchsorted(position, side="right")), parts - 1)
        share = self._shares[part]
        within = min(1 - (self._ends[part] - position) / share, 1 - 1e-9)
        return int((part + within) / parts * self._num_train_timesteps), 1 / (parts * share)


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; neither end waits for a copy from the CPU to a GPU."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_model_range(images: Tensor) -> Tensor:
    """uint8 images (0 to 255) as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] (clamped) as uint8, 0 to 255; the inverse of `to_model_range`."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
