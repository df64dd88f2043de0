"""Images in a file that is mapped into memory: for sets that don't fit; all processes of a machine share it."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskpro.errors import MaskproError
from maskpro.files import atomic_path, read_json, write_json


class StoredImages:
    """A file of images, named by the hash of its source; a pickle holds its path and hash, not its content.

    A machine that doesn't see the file makes it again from the images' folder.

    Attributes:
        images: uint8 `[count, C, H, W]`, mapped from the file; must not be written to.

    Raises:
        MaskproError: the machine sees neither the file nor the folder, or finds other images there.
    """

    def __init__(self, path: Path, content_hash: str, make: Callable[[Path], StoredImages | None]):
        self.path, self.content_hash, self._make = path, content_hash, make
        self.images = as_tensor(np.load(path, mmap_mode="r", allow_pickle=False))

    def rows(self, images: Tensor) -> tuple[int, int] | None:
        """(first, end) of the rows that `images` are, if they lie in this file."""
        here = images.untyped_storage().data_ptr() == self.images.untyped_storage().data_ptr()
        if not here or not images.is_contiguous() or images.shape[1:] != self.images.shape[1:]:
            return None
        first = int(images.storage_offset()) // self.images[0].numel()
        return first, first + len(images)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self.content_hash, self._make)


def _reopened(path: Path, content_hash: str, make: Callable[[Path], StoredImages | None]) -> StoredImages:
    if path.is_file() and stored_record(path).get("sha256") == content_hash:
        return StoredImages(path, content_hash, make)
    node = f"images {path} of the search can't be seen on node {platform.node()}"
    allowed = "allowed: results (--results-dir) or images (--data) in a folder that all nodes see"
    try:
        again = make(Path(tempfile.gettempdir()) / f"maskpro-images-{os.getuid()}")
    except MaskproError as error:
        raise MaskproError(f"{node}, nor can they be read there again ({error}); {allowed}") from error
    if again is None or again.content_hash != content_hash:
        raise MaskproError(f"{node}, and the images that are read there are others; {allowed}")
    return again


def as_tensor(array: np.ndarray) -> Tensor:
    """An array as a tensor over the same memory, which may be read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def stored_path(folder: Path, key: str) -> Path:
    """Path of the images whose source has the hash `key`."""
    return folder / f"{key[:32]}.npy"


def stored_record(path: Path) -> dict[str, Any]:
    """The record of a file of images: "sha256" of the pixels, and what its maker kept; {} if the file isn't whole."""
    try:
        record = read_json(path.with_suffix(".json"))
    except MaskproError:
        return {}
    return record if path.is_file() and isinstance(record, dict) else {}


def store_images(path: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], dict[str, Any]]) -> str:
    """Make the file of images `path` and its record: `fill` writes the pixels and returns what the record keeps.

    Returns: the pixels' hash.

    Raises:
        MaskproError: there is no room, or the folder can't be written to.
    """
    try:
        _check_room(path.parent, int(np.prod(shape)))
        with atomic_path(path) as temporary:
            images = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            if hasattr(os, "posix_fallocate"):  # a disk that fills up while pages are written would kill the process
                with temporary.open("rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            record = fill(images)
            images.flush()
            content_hash = hashlib.sha256(images.data).hexdigest()
            del images
    except OSError as error:
        raise MaskproError(
            f"images can't be kept in {path.parent} ({error.strerror}); name another --results-dir"
        ) from error
    write_json(path.with_suffix(".json"), {**record, "sha256": content_hash})
    return content_hash


def _check_room(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MaskproError(
            f"images need {needed / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB; name another --results-dir"
        )
