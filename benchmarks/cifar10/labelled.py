"""Images with their classes, for the classifier whose features judge others."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from benchmarks.cifar10.common import SIZE, keep, read_kept, say
from maskpro.errors import MaskproError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
# Without test/, every tenth image is one.
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

    They are kept in `work/labelled_<size>.safetensors`, for every later call.

    Raises:
        MaskproError: an image can't be read, or there are no classes.
    """
    cache, source = work / f"labelled_{size}.safetensors", str(folder.absolute())
    kept = read_kept(cache, source)
    if kept is None:
        started = time.monotonic()
        is_torchvision = (folder / "cifar-10-batches-py").is_dir()
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
    from torchvision.datasets import CIFAR10

    if size != SIZE:
        raise MaskproError(f"images of {folder} are {SIZE} pixels wide, not {size}; allowed: files of images")
    try:
        sets = [CIFAR10(str(folder), train=train) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise MaskproError(f"images of {folder} can't be read ({error}); allowed: torchvision's CIFAR-10") from error
    train, test = ((torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)) for part in sets)
    return {"train": train, "test": test}


def _folders(folder: Path, size: int) -> dict[str, Part]:
    train = folder / "train" if (folder / "train").is_dir() else folder
    classes = sorted(path.name for path in train.iterdir() if path.is_dir())
    if len(classes) < 2:
        raise MaskproError(f"{train} holds {len(classes)} folders of classes; allowed: at least 2 (--images)")
    if train != folder and (folder / "test").is_dir():
        return {"train": _read(train, classes, size), "test": _read(folder / "test", classes, size)}
    say(f"{folder} has no test/ beside train/: every tenth image is a test image")
    images, labels = _read(train, classes, size)
    is_test = torch.arange(len(images)) % _TEST_EVERY == 0
    return {"train": (images[~is_test], labels[~is_test]), "test": (images[is_test], labels[is_test])}


def _read(root: Path, classes: list[str], size: int) -> Part:
    def read(path: Path) -> Tensor:
        try:
            with Image.open(path) as opened:
                image = pil_to_tensor(opened.convert("RGB"))
        except OSError as error:
            raise MaskproError(f"{path} is not a readable image; remove it (--images)") from error
        if image.shape[-2:] != (size, size):
            image = center_crop(resize(image, [size], antialias=True), [size, size])
        return image

    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    named = [path.relative_to(root).parts[0] for path in paths]
    for name in {*named} - {*classes}:
        raise MaskproError(f"{root} holds {name!r} beside the classes of train/, {', '.join(classes)}; allowed: those")
    if not paths:
        raise MaskproError(f"no images below {root}; allowed: {', '.join(sorted(_SUFFIXES))} (--images)")
    with ThreadPoolExecutor() as pool:
        images = torch.stack(list(pool.map(read, paths)))
    return images, torch.tensor([classes.index(name) for name in named])
