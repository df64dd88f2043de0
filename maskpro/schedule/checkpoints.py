"""A trial's checkpoints in the storage: their files, and the removal of parts once the trial has stopped or ended."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow.fs import FileSelector, FileSystem, FileType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskpro.errors import MaskproError
from maskpro.files import read_json, write_json
from maskpro.schedule.history import PARTS, TrialRecord

COUNTERS_FILE = "state.json"
_TUNE_NAMES = "checkpoint_"


def part_file(part: str) -> str:
    """File name of a part."""
    return f"{part}.safetensors"


def write_checkpoint(folder: Path, parts: dict[str, dict[str, Tensor]], counters: dict[str, Any]) -> None:
    """Write a state with a file for each part, so that single parts can be removed."""
    for part, tensors in parts.items():
        save_file(tensors, folder / part_file(part))
    write_json(folder / COUNTERS_FILE, counters)


def read_part(folder: Path, part: str) -> dict[str, Tensor]:
    """The tensors of a part.

    Raises:
        MaskproError: the part has been removed, or is damaged.
    """
    file = folder / part_file(part)
    if not file.is_file():
        raise MaskproError(f"checkpoint {folder} has no {file.name}; allowed: one whose part {part} has not been removed")
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise MaskproError(f"checkpoint {folder} is damaged: {file.name} is no safetensors file ({error})") from error
    return tensors


def read_counters(folder: Path) -> dict[str, Any]:
    """The counters that `write_checkpoint` was given."""
    counters: dict[str, Any] = read_json(folder / COUNTERS_FILE)
    return counters


def remove_checkpoint(storage: FileSystem, path: str) -> None:
    """Remove a checkpoint, if it still exists."""
    if _exists(storage, path):
        storage.delete_dir(path)


def remove_all_but(record: TrialRecord, storage: FileSystem, newest: str, parts: tuple[str, ...]) -> None:
    """Remove a trial's checkpoints except these parts of the newest one; some may be removed already.

    Args:
        record: the trial's record.
        storage: storage of the checkpoints.
        newest: path of the newest checkpoint there.
        parts: parts to keep.
    """
    root = PurePosixPath(newest).parents[1]
    for folder in record.folders:
        selector = FileSelector(str(root / folder), allow_not_found=True)
        for found in storage.get_file_info(selector):
            if found.base_name.startswith(_TUNE_NAMES) and found.path != newest:
                storage.delete_dir(found.path)
    if not parts:
        remove_checkpoint(storage, newest)
        return
    for part in PARTS:
        path = f"{newest}/{part_file(part)}"
        if part not in parts and _exists(storage, path):
            storage.delete_file(path)


def _exists(storage: FileSystem, path: str) -> bool:
    return bool(storage.get_file_info(path).type != FileType.NotFound)
