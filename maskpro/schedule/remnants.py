"""Remnants: folders of searches that were killed before they began. They are recognised, so their names are free again."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from maskpro.errors import MaskproError
from maskpro.files import is_leftover, refuse_existing
from maskpro.schedule.folder import EXPERIMENT_FILE, HISTORY_FILE, LOCK_FILE, SPACE_FILE, resuming
from maskpro.schedule.lock import Holder, is_held

# All files that a search writes before `experiment.json`. Without that file it can't be resumed.
_EARLY_FILES = (LOCK_FILE, SPACE_FILE, HISTORY_FILE)


def refuse_begun(folder: Path) -> None:
    """Raise where `folder` holds anything but a remnant."""
    if not is_remnant(folder):
        _refuse(folder)
    elif is_held(folder):
        raise MaskproError(f"experiment {folder} is running; allowed: another name")


def is_remnant(folder: Path) -> bool:
    """Whether the folder is empty, or its search was killed before any trial began.

    Such a folder holds a lock in our own form, and beside it only the first files, without a trial.
    """
    if folder.is_symlink() or not folder.is_dir():
        return False
    entries = list(folder.iterdir())
    if not all(stat.S_ISREG(entry.lstat().st_mode) for entry in entries):
        return False
    if not all(entry.name in _EARLY_FILES or is_leftover(entry) for entry in entries):
        return False
    lock, history = folder / LOCK_FILE, folder / HISTORY_FILE
    return not entries or (_is_lock(lock) and not (history in entries and b'"event": "trial"' in history.read_bytes()))


def clear_remnant(folder: Path) -> None:
    """Remove a killed search's remnant except its lock, which the caller must hold.

    Raises:
        MaskproError: the folder holds more than a remnant.
    """
    if not is_remnant(folder):
        _refuse(folder)
    for entry in folder.iterdir():
        if entry.name != LOCK_FILE:
            entry.unlink()


def _refuse(folder: Path) -> None:
    resume = f", or resume it with {resuming(folder)}" if (folder / EXPERIMENT_FILE).is_file() else ""
    refuse_existing(folder, "experiment folder", f"name another one or remove it{resume}")


def _is_lock(path: Path) -> bool:
    """Whether a file is a lock of ours: empty for an instant, then with its holder."""
    try:
        content = path.read_text(encoding="utf-8")
        return content == "" or bool(Holder(**json.loads(content)))
    except (OSError, ValueError, TypeError):
        return False
