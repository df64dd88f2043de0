"""Images in disjoint sets, and the seeded generator that everything random about data comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from maskpro.errors import MaskproError

Split = Literal["train", "validation", "test"]

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
# Stream number of the draws that belong to a whole split rather than to one sample index.
SPLIT_STREAM = 2**63


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


def philox(seed: int, stream: int) -> np.random.Generator:
    """Counter-based generator of (seed, stream); equal on every machine and device, unlike torch's generators."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)))


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
    order = torch.from_numpy(philox(seed, SPLIT_STREAM).permutation(len(images)))
    return images[order[validation:]], images[order[:validation]]


def digits_images() -> ImageSplits:
    """scikit-learn's 1,797 handwritten 8x8 digits: 1,197 training, 300 validation and 300 test images, fixed."""
    images, _ = labelled_digits()
    return ImageSplits(train=images[:1197], validation=images[1197:1497], test=images[1497:])


def labelled_digits() -> tuple[Tensor, Tensor]:
    """All 1,797 digits in the order of the fixed split: uint8 images `[1797, 1, 8, 8]` and labels `[1797]`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = philox(0, SPLIT_STREAM).permutation(len(digits.images))
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
