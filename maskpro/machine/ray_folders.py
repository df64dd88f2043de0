"""Places for a local Ray's files and token, where the usual ones can't be written, and its address; imports no Ray."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from maskpro.errors import MaskproError

# Longest path of Ray's folder in bytes. The path of a Unix socket has at most 107; below its folder Ray makes
# session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.
_MOST_BYTES = 107 - len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
# Bytes written as a test; Ray's start writes some hundred kilobytes of logs.
_PROBE_BYTES = 1 << 20


def ray_folder(environment: Mapping[str, str]) -> tuple[Path | None, str]:
    """The folder for Ray's files (None: Ray's own choice works) and a note for the user.

    Ray takes `ray` in RAY_TMPDIR, TMPDIR or /tmp, the first that is set.

    Raises:
        MaskproError: no folder can be written to.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in environment), None)
    usual = Path(environment[name] if name else "/tmp") / "ray"
    problem = _problem(usual)
    if not problem:
        return None, ""
    place = f"{name} is {environment[name]}" if name else f"Ray's folder is {usual}"
    for folder in _others(environment):
        if not _problem(folder, private=True):
            return folder, f"{place}, which {problem}; Ray's files are in {folder}"
    raise MaskproError(
        f"{place}, which {problem}, and no other folder will do; allowed: a folder in RAY_TMPDIR that can be written, "
        f"with a path of at most {_MOST_BYTES - len('/ray')} bytes"
    )


def provide_token(environment: MutableMapping[str, str]) -> None:
    """Set a token of this process for its Ray, if the usual file `~/.ray/auth_token` can be neither read nor made."""
    named = any(name in environment for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if named or environment.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        path = Path.home() / ".ray" / "auth_token"
        if path.exists():
            if path.read_text().strip():
                return
        elif not _unwritable(path.parent, mode=0o777):
            return
    environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def choose_network(environment: MutableMapping[str, str], *, joins: bool) -> None:
    """Let a Ray that this process starts listen on 127.0.0.1 alone; one that it joins is reached by other addresses.

    Ray reads the variable as it is imported. It was made for Windows and macOS, whose firewalls ask about other addresses.
    """
    environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = str(int(joins))


def _others(environment: Mapping[str, str]) -> Iterator[Path]:
    names = ("TMPDIR", "XDG_RUNTIME_DIR", "HOME")
    for place in (
        "/tmp",
        "/var/tmp",
        "/dev/shm",
        *(environment[name] for name in names if name in environment),
        os.getcwd(),
    ):
        yield Path(place) / f"ray-{os.getuid()}"


def _problem(folder: Path, *, private: bool = False) -> str:
    """Why Ray can't have its files there; "" where it can. The folder is made.

    Args:
        private: the folder must be this user's own, as others may write beside it.
    """
    if len(os.fsencode(folder.absolute())) > _MOST_BYTES:
        return "is too long a path for Ray's sockets"
    problem = _unwritable(folder, mode=0o700 if private else 0o777)
    if not problem and private and folder.stat().st_uid != os.getuid():
        return "is somebody else's"
    return problem


def _unwritable(folder: Path, *, mode: int) -> str:
    try:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return f"can't be written ({error.strerror})"
    return ""
