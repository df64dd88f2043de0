"""A process that outlives the starter of a local Ray and ends what is left of that Ray.

Ray's agents watch whether their parent lives. After it has been killed, they wait for more than a minute for an answer of
Ray's head, which is dead as well. The processes of one Ray are recognised by the logs that they write: these lie in a
folder with the number of the process that started it.

Run as a script, this module imports the standard library alone.
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
    """Start a helper that ends the remains of this process's Ray once this process has ended.

    The caller must keep the result for as long as Ray runs: the helper takes the end of its pipe for this process's end.
    """
    # The helper has a session of its own: Ctrl-C and a closed terminal are meant for the search.
    return subprocess.Popen(
        [sys.executable, "-I", __file__, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def find_leftovers(owner: int) -> list[int]:
    """Open handles of the processes that write into a folder of a Ray that process `owner` started.

    The owner is left out: it writes there too, and may have shut Ray down long before its own end.
    """
    handles = []
    for folder in Path("/proc").glob("[0-9]*"):
        if folder.name == str(owner):
            continue
        with suppress(OSError):  # the process has ended, or belongs to another user
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
    """Whether a process writes there; a process that only reads a log does not belong to this Ray."""
    logs = re.compile(rf"/session_[-\d_]+_{owner}/logs/")
    return any(logs.search(str(opened.readlink())) and _is_written(folder, opened.name) for opened in _opened(folder))


def _opened(folder: Path) -> list[Path]:
    # All open files: Ray sends standard output and error through pipes, and keeps the ones it was started with elsewhere.
    return sorted((folder / "fd").iterdir(), key=lambda path: int(path.name))


def _is_written(folder: Path, name: str) -> bool:
    flags = re.search(r"flags:\s*([0-7]+)", (folder / "fdinfo" / name).read_text())
    return flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY


def main(owner: int) -> None:
    """Wait for the end of standard input, then end what has not ended by itself after a while."""
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
