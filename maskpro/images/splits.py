"""Sets of images for training, validation and test, and the record of how they were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from maskpro.data import SPLIT_STREAM, philox
from maskpro.errors import MaskproError
from maskpro.images.storage import StoredImages, as_tensor

Split = Literal["train", "validation", "test"]


class DataNotFoundError(MaskproError):
    """A data set could not be loaded; the message says what was looked for, where, and the option that fixes it."""


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Counts of what was read, passed over and converted, for the screen and the records.

    Attributes:
        read: images of each split.
        skipped: files passed over, by kind.
        converted: images with changed pixels, by kind.
        splits: origin of the validation and test images, in words.
        reading: filter, crop and background (`ImageReading.describe`); {} for data sets that are read as they are.
    """

    read: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    converted: Mapping[str, int] = field(default_factory=dict)
    splits: str = ""
    reading: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The counts as plain JSON."""
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}

    def line(self) -> str:
        """The counts in one line."""
        shown = f"{sum(self.read.values()):,} images read ({_counted(self.read)}"
        shown += f"; {self.splits})" if self.splits else ")"
        shown += f"; passed over: {_counted(self.skipped) or 'nothing'}"
        return f"{shown}; converted: {_counted(self.converted) or 'nothing'}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


@dataclass(frozen=True, kw_only=True)
class ImageSplits:
    """Three disjoint sets of images, uint8 `[count, C, H, W]`, values 0 to 255.

    If they lie in a file (`stored`), a pickle of them names rows of that file. It is mapped again on reading, so all
    processes of a machine share its memory. Otherwise a pickle holds them as arrays, which Ray shares likewise.

    Attributes:
        counts: counts of the reading.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    counts: ImageCounts = field(default_factory=ImageCounts)
    stored: StoredImages | None = None

    def __post_init__(self) -> None:
        if not self.counts.read:
            read = {split: len(self[split]) for split in get_args(Split)}
            object.__setattr__(self, "counts", ImageCounts(**{**vars(self.counts), "read": read}))

    def __getitem__(self, split: Split) -> Tensor:
        images: Tensor = getattr(self, split)
        return images

    def __reduce__(self) -> tuple[Any, ...]:
        parts = {split: self._portable(self[split]) for split in get_args(Split)}
        used = self.stored if any(isinstance(part, tuple) for part in parts.values()) else None
        return _restored, (parts, self.counts, used)

    def _portable(self, images: Tensor) -> np.ndarray | tuple[int, int]:
        """Rows (first, end) of the stored file, or an array of these images alone, without others in the same memory."""
        rows = None if self.stored is None else self.stored.rows(images)
        return images.numpy() if rows is None else rows


def _restored(
    parts: Mapping[Split, np.ndarray | tuple[int, int]], counts: ImageCounts, stored: StoredImages | None
) -> ImageSplits:
    splits: dict[str, Tensor] = {}
    for split, part in parts.items():
        if isinstance(part, tuple):
            assert stored is not None
            splits[split] = stored.images[part[0] : part[1]]
        else:
            splits[split] = as_tensor(part)
    return ImageSplits(**splits, counts=counts, stored=stored)


def split_images(images: Tensor, *, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """(rest, validation): a fixed random choice of `validation` images is split off."""
    rest, held_out = split_indices(len(images), validation=validation, seed=seed)
    return images[torch.from_numpy(rest)], images[torch.from_numpy(held_out)]


def split_indices(count: int, *, validation: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rest, validation): the places of `split_images` among `count`."""
    if not 0 < validation < count:
        raise MaskproError(f"validation is {validation}; allowed: 1 to {count - 1} (there are {count} images)")
    order = philox(seed, SPLIT_STREAM).permutation(count)
    return order[validation:], order[:validation]


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
