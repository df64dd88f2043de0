"""A trial's checkpoints in the storage: their files, and what is left of them once the trial has stopped or ended."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.fs
from ray.tune import Checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskpro.errors import MaskproError
from maskpro.files import read_json, write_json
from maskpro.tuning.history import PARTS, TrialRecord

COUNTERS_FILE = "state.json"
_TUNE_NAMES = "checkpoint_"


def part_file(part: str) -> str:
    """Name of a part's file."""
    return f"{part}.safetensors"


def write_checkpoint(folder: Path, parts: dict[str, dict[str, Tensor]], counters: dict[str, Any]) -> None:
    """Write a state: a file for each part, so that parts can be removed."""
    for part, tensors in parts.items():
        save_file(tensors, folder / part_file(part))
    write_json(folder / COUNTERS_FILE, counters)


def read_part(folder: Path, part: str) -> dict[str, Tensor]:
    """The tensors of a part.

    Raises:
        MaskproError: it has been removed.
    """
    file = folder / part_file(part)
    if not file.is_file():
        raise MaskproError(f"checkpoint {folder} has no {file.name}; allowed: one whose part {part} has not been removed")
    tensors: dict[str, Tensor] = load_file(file)
    return tensors


def read_counters(folder: Path) -> dict[str, Any]:
    """What `write_checkpoint` was given beside the tensors."""
    counters: dict[str, Any] = read_json(folder / COUNTERS_FILE)
    return counters


def open_checkpoint(storage: str, path: str) -> Checkpoint:
    """The checkpoint at `path` in the trials' storage, a folder or a URI."""
    filesystem, root = pyarrow.fs.FileSystem.from_uri(storage)
    return Checkpoint(f"{root}/{path}", filesystem=filesystem)


def remove_checkpoint(checkpoint: Checkpoint) -> None:
    """Remove all of a checkpoint, if it is still there."""
    if _exists(checkpoint, checkpoint.path):
        checkpoint.filesystem.delete_dir(checkpoint.path)


def remove_all_but(record: TrialRecord, newest: Checkpoint, parts: tuple[str, ...]) -> None:
    """Remove a trial's checkpoints but for these parts of the newest one, whatever has been removed already."""
    filesystem = newest.filesystem
    root = PurePosixPath(newest.path).parents[1]
    for folder in record.folders:
        selector = pyarrow.fs.FileSelector(str(root / folder), allow_not_found=True)
        for found in filesystem.get_file_info(selector):
            if found.base_name.startswith(_TUNE_NAMES) and found.path != newest.path:
                filesystem.delete_dir(found.path)
    if not parts:
        remove_checkpoint(newest)
        return
    for part in PARTS:
        path = f"{newest.path}/{part_file(part)}"
        if part not in parts and _exists(newest, path):
            filesystem.delete_file(path)


def _exists(checkpoint: Checkpoint, path: str) -> bool:
    return bool(checkpoint.filesystem.get_file_info(path).type != pyarrow.fs.FileType.NotFound)
