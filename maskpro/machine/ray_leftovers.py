"""A process that outlives the one which started a local Ray, and ends what is left of that Ray.

Ray's agents look whether their parent lives. Once it has been killed they wait for more than a minute for an answer of
Ray's head, which is dead as well, before they end. The processes of one Ray are known by the logs that they write, in a
folder with the number of the process that started it.

Run as a script, it imports the standard library alone and nothing of this package.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_GRACE_SECONDS = 5.0
_LAST_SECONDS = 60.0


def end_with_this_process() -> subprocess.Popen[bytes]:
    """Have what is left of a Ray that this process starts ended once this process is no more.

    What is returned must be kept for as long as Ray runs: its end is taken for the process's.
    """
    # A session of its own: Ctrl-C and a closed terminal are meant for the search.
    return subprocess.Popen(
        [sys.executable, "-I", __file__, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def find_leftovers(owner: int) -> list[int]:
    """Open handles of the processes whose output goes to a folder of a Ray that process `owner` started.

    The owner is none of them: it writes there too, and may have shut Ray down long before its own end.
    """
    handles = []
    for folder in Path("/proc").glob("[0-9]*"):
        if folder.name == str(owner):
            continue
        with suppress(OSError):  # it has ended, or is somebody else's
            handle = os.pidfd_open(int(folder.name))
            try:
                found = _is_of(folder, owner)
            except OSError:
                found = False
            if found:
                handles.append(handle)
            else:
                os.close(handle)
    return handles


def _is_of(folder: Path, owner: int) -> bool:
    """Whether a process writes there; who only reads a log is somebody else."""
    logs = re.compile(rf"/session_[-\d_]+_{owner}/logs/")
    return any(logs.search(str(opened.readlink())) and _is_written(folder, opened.name) for opened in _opened(folder))


def _opened(folder: Path) -> list[Path]:
    # Ray sends the first and the second through pipes, and keeps those that it was started with elsewhere.
    return sorted((folder / "fd").iterdir(), key=lambda path: int(path.name))


def _is_written(folder: Path, name: str) -> bool:
    flags = re.search(r"flags:\s*([0-7]+)", (folder / "fdinfo" / name).read_text())
    return flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY


def main(owner: int) -> None:
    """Wait for the end of the standard input, then end what has not ended by itself after a while."""
    sys.stdin.buffer.read()
    started = time.monotonic()
    while time.monotonic() - started < _LAST_SECONDS:
        handles = find_leftovers(owner)
        for handle in handles:
            if time.monotonic() - started > _GRACE_SECONDS:
                with suppress(OSError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        if not handles:
            return
        time.sleep(0.5)


if __name__ == "__main__":
    main(int(sys.argv[1]))
