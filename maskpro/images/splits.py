"""Sets of images for training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from maskpro.data import philox
from maskpro.errors import MaskproError

Split = Literal["train", "validation", "test"]

# Stream number of the draws that split a set of images.
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
