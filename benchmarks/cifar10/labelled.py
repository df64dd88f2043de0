"""Images with their classes, for the classifier whose features judge images."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cifar10.common import SIZE, keep, read_kept, say
from maskpro.errors import MaskproError
from maskpro.images import (
    CIFAR10_FOLDER,
    ImageReading,
    find_images,
    is_system_name,
    labelled_cifar10,
    read_files,
    split_folders,
)

# Without test/, every tenth image is a test image.
_TEST_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images uint8 `[count, 3, side, side]` and labels `[count]` of the splits "train" and "test"."""

    images: dict[str, Tensor]
    labels: dict[str, Tensor]
    source: str


Part = tuple[Tensor, Tensor]


def labelled_images(folder: Path, work: Path, *, size: int = SIZE) -> LabelledImages:
    """The images of a folder with train/ and test/, a folder per class in each, or of torchvision's cifar-10-batches-py.

    They are kept in `work/labelled_<size>.safetensors` for later calls.

    Raises:
        MaskproError: an image can't be read, or there are no classes.
    """
    cache, source = work / f"labelled_{size}.safetensors", str(folder.absolute())
    kept = read_kept(cache, source)
    if kept is None:
        started = time.monotonic()
        is_torchvision = (folder / CIFAR10_FOLDER).is_dir()
        parts = _torchvision(folder, size) if is_torchvision else _folders(folder, size)
        kept = {split: images.contiguous() for split, (images, _) in parts.items()}
        kept |= {f"{split}_labels": labels.contiguous() for split, (_, labels) in parts.items()}
        keep(cache, kept, source)
        say(f"read {sum(len(images) for images, _ in parts.values()):,} images in {time.monotonic() - started:.0f} s")
    splits = ("train", "test")
    return LabelledImages(
        images={split: kept[split] for split in splits},
        labels={split: kept[f"{split}_labels"] for split in splits},
        source=str(folder),
    )


def _torchvision(folder: Path, size: int) -> dict[str, Part]:
    if size != SIZE:
        raise MaskproError(f"images of {folder} are {SIZE} pixels wide, not {size}; allowed: files of images")
    train, test = labelled_cifar10(folder, download=False)
    return {"train": train, "test": test}


def _folders(folder: Path, size: int) -> dict[str, Part]:
    splits = split_folders(folder)
    train = splits.get("train", folder)
    classes = sorted(path.name for path in train.iterdir() if path.is_dir() and not is_system_name(path.name))
    if len(classes) < 2:
        raise MaskproError(f"{train} holds {len(classes)} folders of classes; allowed: at least 2 (--images)")
    if "test" in splits:
        return {"train": _read(train, classes, size), "test": _read(splits["test"], classes, size)}
    say(f"{folder} has no test/ beside train/: every tenth image is a test image")
    images, labels = _read(train, classes, size)
    is_test = torch.arange(len(images)) % _TEST_EVERY == 0
    return {"train": (images[~is_test], labels[~is_test]), "test": (images[is_test], labels[is_test])}


def _read(root: Path, classes: list[str], size: int) -> Part:
    paths = find_images(root, Counter())
    named = [path.relative_to(root).parts[0] for path in paths]
    for name in {*named} - {*classes}:
        raise MaskproError(f"{root} holds {name!r} beside the classes of train/, {', '.join(classes)}; allowed: those")
    if not paths:
        raise MaskproError(f"no images below {root}; allowed: files that Pillow reads (--images)")
    images = read_files(root, paths, resolution=size, channels=3, reading=ImageReading(), say=say)
    return torch.from_numpy(images), torch.tensor([classes.index(name) for name in named])
