"""A folder of images."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from maskpro.images.listing import beside, find_images, refuse_deeper_splits, split_folders
from maskpro.images.reading import ImageReading, UnreadableImageError, read_image
from maskpro.images.splits import DataNotFoundError, ImageCounts, ImageSplits, Split, split_indices
from maskpro.images.storage import StoredImages, as_tensor, store_images, stored_path, stored_record
from maskpro.machine.limits import usable_cores
from maskpro.machine.process import is_terminal

Say = Callable[[str], None]

# Folder beside the results, for sets of images that don't fit into memory; all experiments there share it.
IMAGE_CACHE = ".images"

# Version to count up when the same files give other pixels, so that stored images are made again.
_PIXELS_VERSION = 3
# A larger set is read into a file that is mapped into memory.
IN_MEMORY_BYTES = 2**30
_LARGEST_THREADS = 16
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_FEWEST_IN_ONE_FOLDER = 10
_FEWEST_IN_A_SPLIT = 2
# Number of unreadable files that a message names.
_NAMED = 100
_SECONDS_BETWEEN_LINES = 10


def folder_images(
    root: Path,
    *,
    resolution: int,
    channels: int,
    reading: ImageReading | None = None,
    cache: Path | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
    say: Say | None = None,
) -> ImageSplits:
    """Images below `root` at the model's size: all pictures that Pillow reads, without hidden and system files.

    With `train/` inside, `val/` and `test/` are the other splits; each split is flat or a folder per class. A tenth of the
    training images is split off for each split that is missing. Without `train/`, a fifth of all images is held out, half
    for validation and half for the test.

    Args:
        reading: filter, crop, and treatment of unreadable files.
        cache: folder for a set larger than `in_memory_bytes`, kept for later calls; default: a temporary file.
        say: receives the progress and the counts; None: nobody does.

    Raises:
        DataNotFoundError: `root` is not a folder, holds too few images, or files that can't be read.
        MaskproError: no room for the cache.
    """
    reading = reading or ImageReading()
    if not root.is_dir():
        what = "is a file, not a folder of images (an archive is to be unpacked)" if root.exists() else ""
        raise DataNotFoundError(f"--data {root} {what}" if what else f"no folder of images at {root}; name one with --data")
    skipped: Counter[str] = Counter()
    listed = _listed(root, skipped)
    unreadable: dict[Path, str] = {}
    while True:
        files, notes = _split_files(root, listed, skipped)
        paths = [path for split in _SPLITS for path in files[split]]
        read = partial(_fill, paths, reading, resolution, channels, say)
        shape = (sum(map(len, files.values())), channels, resolution, resolution)
        try:
            array, converted, stored = _images(
                root, files, shape, read, reading=reading, cache=cache, in_memory_bytes=in_memory_bytes
            )
            break
        except _UnreadableFilesError as error:
            unreadable |= error.reasons
            if not reading.skip_unreadable:
                raise DataNotFoundError(_refusal(root, unreadable, shape[0])) from error
            # Only readable images are split, so they are read again at their new places.
            listed = {split: [path for path in paths if path not in unreadable] for split, paths in listed.items()}
            skipped["unreadable files"] = len(unreadable)
    ends = np.cumsum([0, *(len(files[split]) for split in _SPLITS)])
    train, validation, test = (array[first:end] for first, end in pairwise(ends))
    counts = ImageCounts(skipped=dict(skipped), converted=converted, splits=notes, reading=reading.describe())
    splits = ImageSplits(train=train, validation=validation, test=test, counts=counts, stored=stored)
    if say:
        say(f"{root}: {splits.counts.line()}")
    return splits


def read_files(
    root: Path, paths: Sequence[Path], *, resolution: int, channels: int, reading: ImageReading, say: Say | None = None
) -> np.ndarray:
    """Files below `root` at the model's size, uint8 `[len(paths), channels, resolution, resolution]`, in that order.

    Raises:
        DataNotFoundError: some can't be read; all of them are named.
    """
    images = np.empty((len(paths), channels, resolution, resolution), dtype=np.uint8)
    try:
        _fill(paths, reading, resolution, channels, say, images)
    except _UnreadableFilesError as error:
        raise DataNotFoundError(_refusal(root, error.reasons, len(paths))) from error
    return images


class _UnreadableFilesError(Exception):
    def __init__(self, reasons: dict[Path, str]):
        super().__init__()
        self.reasons = reasons


def _refusal(root: Path, reasons: Mapping[Path, str], count: int) -> str:
    shown = [f"{_in_one_line(path.relative_to(root))} ({reason})" for path, reason in sorted(reasons.items())[:_NAMED]]
    more = f" and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    return (
        f"{len(reasons)} of {count} files in {root} can't be read as images: {', '.join(shown)}{more}; "
        "remove them, or skip them with --skip-unreadable"
    )


def _in_one_line(path: Path) -> str:
    """A path for a message in one line, whatever characters its name has."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _listed(root: Path, skipped: Counter[str]) -> dict[Split, list[Path]]:
    """The pictures of each split that has a folder; without such folders all are training images."""
    folders = split_folders(root)
    if not folders:
        paths = find_images(root, skipped)
        refuse_deeper_splits(root, paths)
        return {"train": paths}
    beside(folders, skipped)
    listed = {split: find_images(folders[split], skipped) for split in _SPLITS if split in folders}
    return _apart(listed, skipped)


def _apart(listed: dict[Split, list[Path]], skipped: Counter[str]) -> dict[Split, list[Path]]:
    """The pictures without those of held-out splits that are, by links, pictures of a split before."""
    real_folder = lru_cache(maxsize=None)(os.path.realpath)
    seen: set[str] = set()
    apart: dict[Split, list[Path]] = {}
    for split, paths in listed.items():
        real = [
            os.path.realpath(path) if path.is_symlink() else os.path.join(real_folder(path.parent), path.name)
            for path in paths
        ]
        apart[split] = [path for path, file in zip(paths, real, strict=True) if file not in seen]
        if len(apart[split]) < len(paths):
            skipped["links to images of another split"] += len(paths) - len(apart[split])
        seen.update(real)
    return apart


def _split_files(
    root: Path, listed: Mapping[Split, list[Path]], skipped: Mapping[str, int]
) -> tuple[dict[Split, list[Path]], str]:
    """The files of the three splits in order, and a phrase that names the splits taken off the training images."""
    least = _FEWEST_IN_A_SPLIT if len(listed) > 1 else _FEWEST_IN_ONE_FOLDER
    for split, paths in listed.items():
        if len(paths) < least:
            others = ", ".join(f"{count} {what}" for what, count in skipped.items() if count)
            which = f"{split} images" if len(listed) > 1 else "images"
            raise DataNotFoundError(
                f"{len(paths)} {which} below {root}{f' (passed over: {others})' if others else ''}; at least {least} are "
                "needed (name another with --data)"
            )
    train = listed["train"]
    missing: list[Split] = [split for split in ("validation", "test") if split not in listed]
    if not missing:
        return dict(listed), ""
    if len(missing) == 2:
        rest, held_out = split_indices(len(train), validation=2 * (len(train) // 10), seed=0)
        half = len(held_out) // 2
        parts: dict[Split, Any] = {"train": rest, "validation": held_out[:half], "test": held_out[half:]}
    else:
        rest, held_out = split_indices(len(train), validation=max(1, len(train) // 10), seed=0)
        parts = {"train": rest, missing[0]: held_out}
    taken = {split: [train[index] for index in indices] for split, indices in parts.items()}
    return {**listed, **taken}, f"{' and '.join(missing)} taken off the training images"


def _images(
    root: Path,
    files: Mapping[Split, list[Path]],
    shape: tuple[int, ...],
    read: Callable[[np.ndarray], dict[str, int]],
    *,
    reading: ImageReading,
    cache: Path | None,
    in_memory_bytes: int,
) -> tuple[Any, dict[str, int], StoredImages | None]:
    """The images of all splits, one after the other, in memory or in a file; and what was converted."""
    if np.prod(shape) <= in_memory_bytes:
        array = np.empty(shape, dtype=np.uint8)
        return as_tensor(array), read(array), None
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="maskpro-images-") as folder:  # the mapping outlives the file's name
            path = Path(folder) / "images.npy"
            store_images(path, shape, lambda images: {"converted": read(images)})
            return as_tensor(np.load(path, mmap_mode="r")), stored_record(path)["converted"], None
    path = stored_path(cache, _key(root, files, shape, reading))
    if not stored_record(path):
        store_images(path, shape, lambda images: {"converted": read(images)})
    record = stored_record(path)
    again = partial(_stored_again, root=root.absolute(), resolution=shape[-1], channels=shape[1], reading=reading)
    stored = StoredImages(path.absolute(), record["sha256"], again)
    return stored.images, record["converted"], stored


def _stored_again(cache: Path, **settings: Any) -> StoredImages | None:
    """The images of a folder, read again into a cache of this machine."""
    return folder_images(settings.pop("root"), cache=cache, in_memory_bytes=0, **settings).stored


def _key(root: Path, files: Mapping[Split, list[Path]], shape: tuple[int, ...], reading: ImageReading) -> str:
    """Hash of all that a file of images is made from; a picture counts by its path, size and time."""
    listing = []
    for split in _SPLITS:
        for path in files[split]:
            listing.append([split, str(path.relative_to(root)), *_size_and_time(path)])
    made_from = [str(root.resolve()), listing, shape, reading.describe(), PIL.__version__, _PIXELS_VERSION]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def _size_and_time(path: Path) -> tuple[int, int]:
    """Size and time of a file; placeholders where these can't be read, as reading it will report it as unreadable."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _fill(
    paths: Sequence[Path],
    reading: ImageReading,
    resolution: int,
    channels: int,
    say: Say | None,
    images: np.ndarray,
) -> dict[str, int]:
    """Read the files into `images` on several threads; returns the number of converted images by kind.

    Raises:
        _UnreadableFilesError: some files can't be read; it holds all of them.
    """
    converted: Counter[str] = Counter()
    reasons: dict[Path, str] = {}

    def read(place: int) -> list[str] | str:
        try:
            images[place], done = read_image(paths[place], reading, resolution=resolution, channels=channels)
        except UnreadableImageError as error:
            return str(error)
        return done

    pool = ThreadPoolExecutor(min(_LARGEST_THREADS, usable_cores()))
    with warnings.catch_warnings(), _progress(len(paths), say) as advance:
        # Pillow warns of large images, odd palettes and metadata, but reads the files.
        warnings.simplefilter("ignore")
        try:
            for path, result in zip(paths, pool.map(read, range(len(paths))), strict=True):
                advance()
                if isinstance(result, str):
                    reasons[path] = result
                else:
                    converted.update(result)
        finally:
            pool.shutdown(cancel_futures=True)
    if reasons:
        raise _UnreadableFilesError(reasons)
    return dict(sorted(converted.items()))


@contextmanager
def _progress(total: int, say: Say | None) -> Iterator[Callable[[], None]]:
    """A function to call for each image. It shows a bar on a terminal, else lines now and then with the time left."""
    if say is not None and is_terminal(sys.stderr):
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("reading images", total=total)
            yield lambda: bar.advance(task)
        return
    started = last = time.monotonic()
    made = 0

    def advance() -> None:
        nonlocal last, made
        made += 1
        now = time.monotonic()
        if say and now - last >= _SECONDS_BETWEEN_LINES and made < total:
            last = now
            say(f"reading images: {made:,} of {total:,}, about {(now - started) / made * (total - made):.0f} s left")

    yield advance
