"""Files and folders that are either whole or absent: written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maskpro.errors import MaskproError

# What Git LFS leaves in a clone instead of a large file.
_LFS_POINTER = b"version https://git-lfs.github.com/"
# What the system says where a disk, a quota, or what a file may take by `ulimit -f`, is full.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Bytes of a name in all usual file systems.
_LONGEST_NAME = 255
# safetensors and torch have errors of their own, and Ray hands errors on as text.
_NO_ROOM_TEXTS = (*(os.strerror(number) for number in NO_ROOM), "PytorchStreamWriter failed writing")


def says_no_room(text: str) -> bool:
    """Whether an error's text tells of a disk or a quota that is full."""
    return any(part in text for part in _NO_ROOM_TEXTS)


@contextmanager
def _no_room_at(path: Path) -> Iterator[None]:
    """A full disk within is an OSError that names `path`: safetensors and torch have errors of their own without a name."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MaskproError) or not says_no_room(str(error)):
            raise
        number = next((number for number in NO_ROOM if os.strerror(number) in str(error)), errno.ENOSPC)
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling to write a file to; renamed to `path` on success, removed on error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        error.filename = str(path)  # nobody knows the temporary one
        raise
    os.close(handle)
    temporary = Path(name)
    try:
        with _no_room_at(path), _claimed(temporary):
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
        # mkstemp makes files private; a result should be as readable as any other new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling folder to fill; renamed to `path` on success, removed on error. `path` must not exist."""
    check_new(path, "output folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _no_room_at(path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as name:
        filled = Path(name) / path.name
        filled.mkdir()
        with _claimed(Path(name)):
            yield filled
        filled.replace(path)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """As `atomic_folder`, but takes the place of a folder that is there already once the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _no_room_at(path), tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as name:
        filled = Path(name) / "new"
        filled.mkdir()
        with _claimed(Path(name)):
            yield filled
        if path.exists():
            path.replace(Path(name) / "old")
        filled.replace(path)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that a kill has left in `folder`, but for those that somebody still writes."""
    for path in list(folder.iterdir()):
        if is_leftover(path) and not _is_claimed(path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether it has the name of a temporary file or folder of ours: `.best.x8k_2cdw`, `.report.html.x8k_2cdw.html`."""
    match = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}(\.[^.]+)?", path.name)
    if match is None or path.is_symlink():
        return False
    name, suffix = match.groups(default="")
    return path.is_dir() and not suffix if not Path(name).suffix else path.is_file() and Path(name).suffix == suffix


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Nobody takes a temporary file or folder for a leftover while it is written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _is_claimed(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # gone, or not ours
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def refuse_existing(path: Path, what: str, allowed: str = "name another one or remove it") -> None:
    """Raise where `path` exists, or is a link to what doesn't: results are never overwritten silently."""
    if os.path.lexists(path):
        raise MaskproError(f"{what} {path} exists already and is not overwritten; {allowed}")


def check_new(path: Path, what: str) -> None:
    """Raise where `path` exists, or can't be made; nothing is left behind."""
    refuse_existing(path, what)
    problem = why_unwritable(path.absolute().parent) or _name_problem(path)
    if problem:
        raise MaskproError(f"{what} {path} can't be written ({problem}); name another one")


def _name_problem(path: Path) -> str:
    """Why no temporary sibling of that path can be made, or ""."""
    longest = len(os.fsencode(f".{path.name}.12345678{path.suffix}"))
    return os.strerror(errno.ENAMETOOLONG) if longest > _LONGEST_NAME else ""


def why_unwritable(folder: Path) -> str:
    """Why a folder that is there, or is still to be made, can't be written; "" where it can. Nothing is left behind."""
    try:
        above = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN is refused, as JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a MaskproError."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # Windows' programs write a mark in front
    except FileNotFoundError:
        raise MaskproError(f"no file {path}") from None
    except (ValueError, RecursionError) as error:
        raise MaskproError(f"{path} is not JSON ({error})") from error


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_lfs_pointer(path: Path) -> bool:
    """Whether Git LFS has yet to put the file itself in its place."""
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER
