"""For measurements that resume after a kill: a deadline over all sessions, and rows that are kept one by one."""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maskpro.errors import MaskproError


def die_with_parent() -> None:
    """On Linux, end the calling process as soon as its parent has ended, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Deadline:
    """Time of a stage, over all of its sessions.

    Args:
        minutes: minutes in all.
        spent: seconds of earlier sessions, up to their last checkpoint.
    """

    def __init__(self, minutes: float, *, spent: float = 0.0, clock: Callable[[], float] = time.monotonic):
        self.seconds = 60 * minutes
        self._clock = clock
        self._began = clock() - spent

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Seconds left; negative after the deadline."""
        return self.seconds - self.spent


class Rows:
    """Rows of a table in a file of JSON lines. An added row is safe; a torn last line is dropped."""

    def __init__(self, path: Path):
        self._path = path

    def read(self) -> list[dict[str, Any]]:
        """All whole rows."""
        if not self._path.is_file():
            return []
        content = self._path.read_bytes()
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise MaskproError(f"{self._path} is broken ({error}); allowed: rows as they were written") from error

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab+") as file:
            file.seek(0)
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
            file.write(json.dumps(row).encode() + b"\n")
