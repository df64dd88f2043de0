"""Calibration samples, drawn where the network is.

A calibration sample is an (image, timestep, noise) triple and a pure function of (seed, index). Batch size, order, resuming
and device never change it, so every trial and every model sees the same triples. Images, timesteps and weights are the same
bits everywhere. Noise comes from the same integers and the same uniform numbers, but logarithm, sine and cosine round
differently in each library. Its values therefore differ by at most 2e-6 (absolute; they reach 6.8), and by at most 5e-6
from float64 values of the same uniform numbers.

The integers are those of Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The counter is
a sample's index and the number of a block; the key is the seed. Block 0 gives the timestep; block 1 + j gives the values 4j
to 4j + 3 of the noise. On a CPU numpy computes them, as torch takes several times as long for small batches. On a GPU a
Triton kernel does (`maskpro.sample_kernels`), and torch on any other device or where Triton does not run.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskpro.data import SPLIT_STREAM, move, philox, to_model_range
from maskpro.errors import MaskproError
from maskpro.philox import LAST_WORD, philox4x32, philox4x32_by_numpy

# Blocks that a CPU computes together: their intermediate values stay in a core's cache.
_CACHED_BLOCKS = 2**13
# Larger sets of images stay in the CPU's memory, and each batch is copied. CIFAR-10's 50,000 are 154 MB.
_LARGEST_ON_DEVICE = 2**28


@dataclass(frozen=True, kw_only=True)
class DiffusionBatch:
    """Calibration samples: images `[B, C, H, W]` in [-1, 1], timesteps `[B]` (int64), noise like images, weights `[B]`."""

    images: Tensor
    timesteps: Tensor
    noise: Tensor
    weights: Tensor


class CalibrationSamples:
    """Diffusion triples over a set of images (uint8 `[count, C, H, W]`), one for every index >= 0.

    Sample i shows image `order[i % count]` of a seeded permutation, so there may be more samples than images.
    Timesteps are uniform (training). With `strata` (held-out sets of `strata` samples) each sample i < strata has a
    stratum of the schedule of its own.

    With `shares` the timesteps are importance samples: the schedule is cut into equal parts, and each part gets its share.
    A sample's weight is the uniform density divided by its own, so the mean of a weighted loss stays the same. Weights are
    1 otherwise.

    Args:
        device: where batches are made; images of up to 256 MiB are kept there.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        num_train_timesteps: int,
        seed: int,
        strata: int | None = None,
        shares: Sequence[float] | None = None,
        device: torch.device | None = None,
    ):
        if len(images) == 0:
            raise MaskproError("images is empty; at least one image is needed")
        self._device = torch.device("cpu") if device is None else device
        self._images = images.to(self._device) if images.nbytes <= _LARGEST_ON_DEVICE else images
        self._seed = seed
        self._num_train_timesteps = num_train_timesteps
        split_draws = philox(seed, SPLIT_STREAM)
        self._order = split_draws.permutation(len(images))
        self._strata = None if strata is None else split_draws.permutation(strata)
        self._shares = np.array([1.0] if shares is None else shares)
        self._ends = self._shares.cumsum()

    def batch(self, indices: Tensor) -> DiffusionBatch:
        """The samples of `indices` (`[B]`, int64, on the CPU), on the device; does not wait for a GPU."""
        return self._batch_on_cpu(indices.numpy()) if self._device.type == "cpu" else self._batch_elsewhere(indices.numpy())

    def _batch_on_cpu(self, indices: np.ndarray) -> DiffusionBatch:
        shape = self._images.shape[1:]
        positions, values = _drawn_by_numpy(self._seed, indices, math.prod(shape))
        timesteps, weights = (torch.from_numpy(array) for array in self._timesteps(indices, positions))
        return DiffusionBatch(
            images=to_model_range(self._images[torch.from_numpy(self._places(indices))]),
            timesteps=timesteps,
            noise=torch.from_numpy(values).view(len(indices), *shape),
            weights=weights.float(),
        )

    def _batch_elsewhere(self, indices: np.ndarray) -> DiffusionBatch:
        """The batch on another device: integers come from the CPU in one copy, large tensors are made on the device."""
        shape, places = self._images.shape[1:], self._places(indices)
        timesteps, weights = self._timesteps(indices, _positions(_words_of(self._seed, indices, 0, 1)))
        columns = torch.from_numpy(np.stack([indices, places, timesteps, weights.view(np.int64)]))
        moved, chosen, on_device, weight_bits = move(columns, self._device).unbind()
        if self._images.device == moved.device:
            images = self._images[chosen]
        else:
            images = move(self._images[torch.from_numpy(places)], self._device)
        return DiffusionBatch(
            images=to_model_range(images),
            timesteps=on_device,
            noise=normal_values(self._seed, moved, math.prod(shape)).view(len(indices), *shape),
            weights=weight_bits.view(torch.float64).float(),
        )

    def _places(self, indices: np.ndarray) -> np.ndarray:
        """The places of the samples' images, `[B]`."""
        places: np.ndarray = self._order[indices % len(self._order)]
        return places

    def _timesteps(self, indices: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps (int64) and weights (float64), `[B]`, of positions in [0, 1)."""
        if self._strata is not None:
            positions = (self._strata[indices] + positions) / len(self._strata)
        parts = len(self._shares)
        if parts == 1:
            return (positions * self._num_train_timesteps).astype(np.int64), np.ones(len(indices))
        part = self._ends.searchsorted(positions, side="right").clip(max=parts - 1)
        share = self._shares[part]
        within = np.minimum(1 - (self._ends[part] - positions) / share, 1 - 1e-9)
        return ((part + within) / parts * self._num_train_timesteps).astype(np.int64), 1 / (parts * share)


def box_muller(words: Sequence[Any], library: Any) -> Any:
    """Four standard normal values from four words, float32, along a new last dimension; `library` is numpy or torch.

    Box and Muller 1958: sqrt(-2 log u) cos(2 pi v) and sqrt(-2 log u) sin(2 pi v). u, in (0, 1], is the float32 nearest to
    a scaled word; v has a word's first 24 bits. Both are the same float32 everywhere.
    """
    values = []
    for first, second in (words[:2], words[2:]):
        uniform = library.asarray(first, dtype=library.float32) * 2**-32 + 2**-33
        radius = library.sqrt(library.log(uniform) * -2)
        angle = library.asarray(second >> 8, dtype=library.float32) * (2 * math.pi / 2**24)
        values += [radius * library.cos(angle), radius * library.sin(angle)]
    return library.stack(values, -1)


def normal_values(seed: int, indices: Tensor, size: int) -> Tensor:
    """The noise of the samples of `indices` (`[B]`, int64), float32 `[B, size]`, on the indices' device."""
    if indices.is_cuda and (kernels := _kernels()):
        return kernels.normal_values(seed, indices, size)  # type: ignore[no-any-return]
    return noise_by_torch(seed, indices, size)


def noise_by_torch(seed: int, indices: Tensor, size: int) -> Tensor:
    """`normal_values` on any device, one operation after another."""
    words = _words_of(seed, indices, 1, -(-size // 4))
    values: Tensor = box_muller(words, torch).flatten(1)[:, :size]
    return values.contiguous()


def _words_of(seed: int, indices: Any, first: int, count: int) -> tuple[Any, Any, Any, Any]:
    """Words `[B, count]` of the blocks from `first` on, by numpy for an array of indices `[B]`, by torch for a tensor."""
    column, key = indices[:, None], (seed & LAST_WORD, seed >> 32)
    if isinstance(indices, Tensor):
        blocks = torch.arange(first, first + count, device=indices.device)[None]
        return philox4x32((column & LAST_WORD, column >> 32, blocks, 0), key)
    return philox4x32_by_numpy((column & LAST_WORD, column >> 32, np.arange(first, first + count)[None], 0), key)


def _positions(words: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers in [0, 1) with 53 bits, float64 `[B]`, from the words `[B, ...]` of block 0."""
    first, second = (word[:, 0] for word in words[:2])
    return ((first >> 5) * 2.0**26 + (second >> 6)) * 2.0**-53


def _drawn_by_numpy(seed: int, indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions `[B]` and noise `[B, size]` of samples on a CPU, a few samples at a time, on as many threads as torch."""
    positions, values = np.empty(len(indices)), np.empty((len(indices), size), dtype=np.float32)
    blocks = -(-size // 4)
    rows = max(1, _CACHED_BLOCKS // (1 + blocks))

    def draw(start: int) -> None:
        part = slice(start, start + rows)
        words = _words_of(seed, indices[part], 0, 1 + blocks)
        positions[part] = _positions(words)
        values[part] = box_muller([word[:, 1:] for word in words], np).reshape(-1, 4 * blocks)[:, :size]

    starts = range(0, len(indices), rows)
    threads = min(torch.get_num_threads(), len(starts))
    if threads <= 1:
        for start in starts:
            draw(start)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(draw, starts))
    return positions, values


@cache
def _kernels() -> ModuleType | None:
    """The Triton kernels, if they run here and are right on two samples."""
    try:
        from maskpro import sample_kernels

        probe = torch.tensor([0, 2**40 + 1], device="cuda")
        found = sample_kernels.normal_values(2**33 + 5, probe, 7).cpu()
        expected = normal_values(2**33 + 5, probe.cpu(), 7)
        if not torch.allclose(found, expected, rtol=0, atol=1e-5):
            raise RuntimeError("its values are not those of torch")
    except Exception as error:  # no Triton, no C compiler for it, or an unknown card
        warnings.warn(f"without Triton's kernel samples take ten times as long to draw ({error})", stacklevel=2)
        return None
    return sample_kernels
