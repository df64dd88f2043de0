"""Images and calibration samples.

A calibration sample is an (image, timestep, noise) triple and a pure function of (seed, index): batch size, order,
resuming and device type never change it, so every trial and every model sees the same triples.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from maskpro.errors import MaskproError

Split = Literal["train", "validation", "test"]

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
# Normal numbers of a batch that are worth a thread of their own (half a millisecond).
_DRAWN_BY_A_THREAD = 50_000
# Stream number of the draws that belong to a whole split rather than to one sample index.
_SPLIT_STREAM = 2**63


class DataNotFoundError(MaskproError):
    """A data set could not be had; the message says what was looked for, where, and the option that fixes it."""


@dataclass(frozen=True, kw_only=True)
class ImageSplits:
    """Three disjoint sets of images, uint8 `[count, C, H, W]`, values 0 to 255."""

    train: Tensor
    validation: Tensor
    test: Tensor

    def __getitem__(self, split: Split) -> Tensor:
        images: Tensor = getattr(self, split)
        return images


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


def split_images(images: Tensor, *, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """(rest, validation): a fixed random choice of `validation` images is split off."""
    if not 0 < validation < len(images):
        raise MaskproError(f"validation is {validation}; allowed: 1 to {len(images) - 1} (there are {len(images)} images)")
    order = torch.from_numpy(philox(seed, _SPLIT_STREAM).permutation(len(images)))
    return images[order[validation:]], images[order[:validation]]


def digits_images() -> ImageSplits:
    """scikit-learn's 1,797 handwritten 8x8 digits: 1,197 training, 300 validation and 300 test images, fixed."""
    images, _ = labelled_digits()
    return ImageSplits(train=images[:1197], validation=images[1197:1497], test=images[1497:])


def labelled_digits() -> tuple[Tensor, Tensor]:
    """All 1,797 digits in the order of the fixed split: uint8 images `[1797, 1, 8, 8]` and labels `[1797]`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = philox(0, _SPLIT_STREAM).permutation(len(digits.images))
    images = torch.from_numpy(np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    return images, torch.from_numpy(digits.target[order])


def cifar10_images(root: Path, *, download: bool, validation: int = 5000) -> ImageSplits:
    """CIFAR-10 through torchvision, kept in `root`; validation images are split off the 50,000 training images.

    Raises:
        DataNotFoundError: the data set is not in `root` and can't be downloaded.
    """
    from torchvision.datasets import CIFAR10

    try:
        parts = [CIFAR10(str(root), train=train, download=download).data for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise DataNotFoundError(
            f"CIFAR-10 was not found in {root} and could not be downloaded ({type(error).__name__}); "
            "name a folder of images, or a folder that holds cifar-10-batches-py, with --data"
        ) from error
    train, test = (torch.from_numpy(part).permute(0, 3, 1, 2).contiguous() for part in parts)
    train, held_out = split_images(train, validation=validation, seed=0)
    return ImageSplits(train=train, validation=held_out, test=test)


def folder_images(root: Path, *, resolution: int, channels: int) -> ImageSplits:
    """Images below `root`, resized and centre-cropped to `resolution`.

    With `train/` and `test/` inside (each a folder per class, or flat), a tenth of the training images is split off
    for validation; otherwise a fifth of all images is held out, half for validation and half for the test.

    Raises:
        DataNotFoundError: `root` is not a folder, or holds too few images.
    """
    if not root.is_dir():
        raise DataNotFoundError(f"no folder of images at {root}; name one with --data")
    named = [root / "train", root / "test"]
    if all(folder.is_dir() for folder in named):
        train, test = (_read_images(folder, resolution, channels) for folder in named)
        train, validation = split_images(train, validation=max(1, len(train) // 10), seed=0)
        return ImageSplits(train=train, validation=validation, test=test)
    images = _read_images(root, resolution, channels)
    if len(images) < 10:
        raise DataNotFoundError(f"{len(images)} images below {root}; at least 10 are needed (name another with --data)")
    train, held_out = split_images(images, validation=2 * (len(images) // 10), seed=0)
    half = len(held_out) // 2
    return ImageSplits(train=train, validation=held_out[:half], test=held_out[half:])


def _read_images(root: Path, resolution: int, channels: int) -> Tensor:
    from PIL import Image, UnidentifiedImageError
    from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    if len(paths) < 2:
        raise DataNotFoundError(
            f"{len(paths)} images below {root}; at least 2 ({', '.join(sorted(_IMAGE_SUFFIXES))}) are needed (--data)"
        )
    images = []
    for path in paths:
        try:
            with Image.open(path) as opened:
                image = pil_to_tensor(opened.convert("L" if channels == 1 else "RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise DataNotFoundError(f"{path} is not a readable image; remove it from the folder of --data") from error
        if image.shape[-2:] != (resolution, resolution):
            image = center_crop(resize(image, [resolution], antialias=True), [resolution, resolution])
        images.append(image)
    return torch.stack(images)
