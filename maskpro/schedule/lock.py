"""The lock of an experiment's folder, which says whether its search runs, and where; imports neither Ray nor torch.

Only the lock counts, which the system gives back with its process. What stands in the file names who holds it, and means
something only while somebody does. The package filelock has no shared lock, with which one only looks (see docs/design.md).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import psutil

from maskpro.errors import MaskproError
from maskpro.schedule.folder import LOCK_FILE

# Somebody who looks whether the lock is held has it for an instant, so that one refusal means nothing.
_TRIES = 3
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that runs a search."""

    host: str
    pid: int


@contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Be the only one to run the search in `folder`, and write there who that is.

    Raises:
        MaskproError: somebody else is.
    """
    # Not emptied before it is ours: what stands there is another one's.
    with (folder / LOCK_FILE).open("a+") as file:
        if not _take(file):
            raise MaskproError(
                f"experiment {folder} is running{_where(folder)}; allowed: one that has ended or was stopped"
            )
        file.truncate(0)
        holder = Holder(host=socket.gethostname(), pid=os.getpid())
        try:
            os.write(file.fileno(), json.dumps(asdict(holder)).encode())
        except OSError as error:  # a full disk
            error.filename = str(folder / LOCK_FILE)
            raise
        try:
            yield
        finally:
            file.truncate(0)


def is_held(folder: Path) -> bool:
    """Whether the search in `folder` runs, on whatever host."""
    path = folder / LOCK_FILE
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise MaskproError(f"{path} can't be read ({error}); allowed: a folder that you may read") from error
    return False


def read_holder(folder: Path) -> Holder | None:
    """Who has written its name into the lock; it means something only while the lock is held."""
    with suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads((folder / LOCK_FILE).read_text()))
    return None


def _where(folder: Path) -> str:
    holder = read_holder(folder)
    return "" if holder is None else f" on host {holder.host}, as process {holder.pid}"


def has_lock_open(folder: Path, pid: int) -> bool:
    """Whether a process of this machine has the lock of `folder` open, so that it is no other one with the same number."""
    try:
        return any(_is_same(Path(opened.path), folder / LOCK_FILE) for opened in psutil.Process(pid).open_files())
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # somebody else's, who can't be sent a signal either
        return True


def _is_same(opened: Path, path: Path) -> bool:
    with suppress(OSError):  # closed by now
        return opened.samefile(path)
    return False


def _take(file: IO[str]) -> bool:
    for attempt in range(_TRIES):
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if attempt < _TRIES - 1:
            time.sleep(_PAUSE_SECONDS)
    return False
