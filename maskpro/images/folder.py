"""A folder of images."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from maskpro.images.splits import DataNotFoundError, ImageSplits, split_images

_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


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
