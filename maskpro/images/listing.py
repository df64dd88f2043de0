"""The files of a folder of images: those that are read or passed over, and their splits."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

from maskpro.images.reading import picture_formats
from maskpro.images.splits import DataNotFoundError, Split

_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information"}
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def find_images(root: Path, skipped: Counter[str]) -> list[Path]:
    """The pictures below a folder by their endings, in a fixed order; `skipped` counts what is passed over.

    Links to folders are followed, but each folder is read once, even if several links or a circle of links lead to it.

    Raises:
        DataNotFoundError: a folder can't be read.
    """
    paths: list[Path] = []
    seen = {root.resolve()}

    def refuse(error: OSError) -> None:
        raise DataNotFoundError(f"folder {error.filename} of --data can't be read ({error.strerror})") from error

    for place, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        here = Path(place)
        kept = []
        for name in sorted(folders):
            resolved = (here / name).resolve()
            if is_system_name(name):
                skipped["hidden or system files"] += 1
            elif resolved in seen:
                skipped["links to folders that were read already"] += 1
            else:
                seen.add(resolved)
                kept.append(name)
        folders[:] = kept
        for name in files:
            if is_system_name(name):
                skipped["hidden or system files"] += 1
            elif _is_no_file(here / name):
                skipped["pipes, sockets or devices"] += 1
            elif Path(name).suffix.lower() in picture_formats():
                paths.append(here / name)
            else:
                skipped[f"other files ({Path(name).suffix.lower() or 'no ending'})"] += 1
    return sorted(paths)


def _is_no_file(path: Path) -> bool:
    """Whether it is a pipe, socket or device, whose reading might never end; a broken link is none."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def is_system_name(name: str) -> bool:
    """Whether a file or folder is hidden, or left by an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES or name.lower() in _SYSTEM_FOLDERS


def split_folders(root: Path) -> dict[Split, Path]:
    """The folders `train`, `val` (`valid`, `validation`) and `test` of a data set; {} where it has none.

    Capitals don't matter. If `root` holds one folder and no picture, as an unpacked archive does, that folder is taken.

    Raises:
        DataNotFoundError: two folders for one split, or no training images beside the other splits.
    """
    while True:
        found: dict[Split, Path] = {}
        inner = [path for path in sorted(root.iterdir()) if not is_system_name(path.name)]
        for path in inner:
            split = _SPLIT_NAMES.get(path.name.lower())
            if split and path.is_dir():
                if split in found:
                    raise DataNotFoundError(
                        f"{root} holds both {found[split].name}/ and {path.name}/; allowed: one folder for {split} images"
                    )
                found[split] = path
        folders = [path for path in inner if path.is_dir()]
        has_pictures = any(path.suffix.lower() in picture_formats() for path in inner if not path.is_dir())
        if found or has_pictures or len(folders) != 1 or folders[0].is_symlink():
            break
        root = folders[0]
    if found and "train" not in found:
        raise DataNotFoundError(
            f"{root} holds {' and '.join(f'{path.name}/' for path in found.values())} but no train/; allowed: train/ "
            "beside them, or a folder with none of these"
        )
    _check_apart(found)
    return found


def refuse_deeper_splits(root: Path, paths: list[Path]) -> None:
    """Raise where images lie in folders of splits further down, as in cats/train and cats/test: all would be pooled."""
    found: dict[Split, Path] = {}
    for folder in sorted({path.parent for path in paths}):
        for place in (folder, *folder.parents):
            if place == root:
                break
            split = _SPLIT_NAMES.get(place.name.lower())
            if split:
                found.setdefault(split, place)
    if len(found) > 1:
        raise DataNotFoundError(
            f"{root} holds {' and '.join(f'{path.relative_to(root)}/' for path in found.values())} further down, whose "
            "images would be read together; allowed: --data with train/ and the other splits directly in it"
        )


def _check_apart(folders: dict[Split, Path]) -> None:
    """Raise where one split's folder is, or lies in, another's, by links: its images would be held out and learned from."""
    for first, second in permutations(folders.values(), 2):
        if first.resolve().is_relative_to(second.resolve()):
            raise DataNotFoundError(
                f"{first} is, or lies in, the folder of {second}; allowed: folders of splits apart from each other, or "
                "train/ alone (images are then held out from it)"
            )


def beside(folders: dict[Split, Path], skipped: Counter[str]) -> None:
    """Count the images beside the folders of the splits; they are not read."""
    root = folders["train"].parent
    others = [path for path in _visible(root) if path not in folders.values()]
    count = 0
    for path in others:
        count += len(find_images(path, Counter())) if path.is_dir() else path.suffix.lower() in picture_formats()
    if count:
        skipped[f"images beside {', '.join(f'{path.name}/' for path in folders.values())}"] += count


def _visible(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.iterdir()) if not is_system_name(path.name))
