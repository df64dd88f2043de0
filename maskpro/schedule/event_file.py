"""The file of a history: JSON lines, of which a kill can tear the last one alone."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskpro.errors import MaskproError

_CHECKPOINT_PATH = re.compile(r"[\w-]+(/[\w-]+)?", re.ASCII)


def write_line(path: Path, line: bytes) -> None:
    """Append a line, whole and flushed to the disk, or nothing."""
    # One write: a kill can then tear the last line only, and reading drops that.
    with path.open("ab", buffering=0) as file:
        whole = file.tell()
        if file.write(line) != len(line):  # the disk is full; half a line would break the next one
            file.truncate(whole)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(file.fileno())


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a history; a last line torn by a kill is left out.

    Raises:
        MaskproError: any other line is broken.
    """
    return parse_events(path, path.read_bytes(), 0)


def parse_events(path: Path, content: bytes, lines_before: int) -> Iterator[dict[str, Any]]:
    """The events in whole lines of a file, of which `lines_before` come before `content`.

    Raises:
        MaskproError: a line is not JSON.
    """
    for number, line in enumerate(content.split(b"\n")[:-1], lines_before + 1):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise broken_line(path, number, str(error)) from error


def broken_line(path: Path, number: int, why: str) -> MaskproError:
    """What to raise for a line that holds no event."""
    return MaskproError(f"{path} is broken in line {number} ({why}); allowed: a history as it was written")


def check_checkpoint_path(path: str) -> None:
    """Raise TypeError where a checkpoint would not lie in the storage, from which old ones are removed."""
    if not _CHECKPOINT_PATH.fullmatch(path):
        raise TypeError(f"path is {path!r:.40}")


def drop_torn_line(path: Path) -> None:
    """Remove a last line torn by a kill, before anything is appended."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("rb+") as file:
            file.truncate(len(whole))
