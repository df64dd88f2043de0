"""CIFAR-10 as torchvision keeps it."""

from __future__ import annotations

from pathlib import Path

import torch

from maskpro.images.splits import DataNotFoundError, ImageSplits, split_images


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
