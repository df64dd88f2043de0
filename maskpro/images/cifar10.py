"""CIFAR-10 as torchvision stores it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from maskpro.images.splits import DataNotFoundError, ImageCounts, ImageSplits, split_images

CIFAR10_FOLDER = "cifar-10-batches-py"


def cifar10_images(root: Path, *, download: bool, validation: int = 5000) -> ImageSplits:
    """CIFAR-10 through torchvision, kept in `root`; validation images are split off the 50,000 training images.

    Raises:
        DataNotFoundError: the data set is not in `root`, is not whole, or can't be downloaded.
    """
    (train, _), (test, _) = labelled_cifar10(root, download=download)
    train, held_out = split_images(train, validation=validation, seed=0)
    counts = ImageCounts(splits="validation taken off the training images")
    return ImageSplits(train=train, validation=held_out, test=test, counts=counts)


def labelled_cifar10(root: Path, *, download: bool) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images uint8 `[count, 3, 32, 32]` and classes `[count]` for training and test, through torchvision.

    Raises:
        DataNotFoundError: as for `cifar10_images`.
    """
    from torchvision.datasets import CIFAR10

    problems = _problems(root)
    if problems and not download and (root / CIFAR10_FOLDER).is_dir():
        raise DataNotFoundError(
            f"CIFAR-10 in {root / CIFAR10_FOLDER} is not whole: {', '.join(problems)}; allowed: the files as published "
            "(cifar-10-python.tar.gz, unpacked), or a folder of images (--data)"
        )
    try:
        parts = [CIFAR10(str(root), train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise DataNotFoundError(
            f"CIFAR-10 was not found in {root} and could not be downloaded ({type(error).__name__}); "
            "name a folder of images, or a folder that holds cifar-10-batches-py, with --data"
        ) from error
    train, test = (
        (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)) for part in parts
    )
    return train, test


def _problems(root: Path) -> list[str]:
    """Files that are missing or differ from the published ones. They are pickles, so changed ones are never opened."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_md5

    problems = []
    described = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    for name, published in (*CIFAR10.train_list, *CIFAR10.test_list, described):
        path = root / CIFAR10_FOLDER / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif not check_md5(str(path), published):
            problems.append(f"{name} is broken or was changed (its MD5 is not the published one)")
    return problems
