"""Running a command: the installation is checked first, and a user's mistake ends in one sentence and exit status 2."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

import typer

from maskpro.errors import MaskproError
from maskpro.files import NO_ROOM, says_no_room
from maskpro.machine.installation import check_installation, limit_threads
from maskpro.machine.limits import usable_cores
from maskpro.machine.process import (
    check_texts,
    current_folder,
    open_closed_streams,
    provide_home,
    raise_file_limit,
    say_aside,
    show_all_characters,
)
from maskpro.monitoring.driver_log import kept_output

SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    # The original's options are spelt with underscores: --batch_size is --batch-size.
    "context_settings": {"token_normalize_func": lambda text: text.replace("_", "-")},
}
# What the system may refuse at any moment, and what mends it; any other refusal is a fault of ours.
_TO_MEND = {
    (errno.EFBIG,): "larger files, such as by ulimit -f unlimited",
    NO_ROOM: "a disk with room",
    (errno.EACCES, errno.EPERM, errno.EROFS): "files and folders that this user may read and write",
    (errno.ENAMETOOLONG,): "shorter names of files and folders",
    (errno.EMFILE, errno.ENFILE): "more open files, such as by ulimit -n 4096",
    (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT): "a disk or a network share that answers",
    (errno.ENOMEM, errno.EAGAIN): "a machine with more memory and processes to spare",
}


def run_command(command: Callable[..., Any], *, check: bool = True) -> None:
    """Run a typer command; a user's mistake ends in one sentence and exit status 2.

    Args:
        check: the installation first, which takes seconds; else the command has to.
    """

    @wraps(command)
    def checked(**options: Any) -> Any:
        if check:
            check_installation()
            limit_threads(usable_cores())
        return command(**options)

    single = typer.Typer(**SETTINGS)
    single.command()(checked)
    run_app(single)


def run_app(application: typer.Typer) -> None:
    """Run a typer application; a user's mistake, or a place that can't be written, ends in one sentence and status 2."""
    open_closed_streams()
    show_all_characters()
    raise_file_limit()
    try:
        check_texts((*sys.argv[1:], current_folder()))
        note = provide_home(os.environ)
        if note:
            say_aside(note)
        application()
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        with suppress(OSError):  # nobody listens
            say_aside(f"error: {sentence}")
        sys.exit(2)


def _sentence(error: Exception) -> str | None:
    """What a user can do about an error; None where it is a fault of ours."""
    if isinstance(error, MaskproError):
        return str(error)
    text = " ".join(str(error).split())[:200]
    # torch's, which is imported only where it is needed.
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory with one sample at a time ({text}); allowed: another --device"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return f"out of memory ({text or 'none was to be had'}); allowed: a machine or a limit (ulimit -v) with more"
    # A name from a file, which the arguments did not show. That UTF-8 lacks it is a fault of ours.
    if isinstance(error, UnicodeEncodeError) and not error.encoding.lower().startswith("utf"):
        return f"a name can't be written in this locale ({text}); allowed: a locale of UTF-8, such as LC_ALL=C.UTF-8"
    if isinstance(error, OSError):
        allowed = next((allowed for numbers, allowed in _TO_MEND.items() if error.errno in numbers), None)
        if allowed is not None:
            how = "written" if error.errno in NO_ROOM else "opened or written"
            return f"{error.filename or 'a file or the output'} can't be {how} ({error.strerror}); allowed: {allowed}"
    # safetensors and torch have errors of their own, which name no file.
    return f"a file can't be written ({text}); allowed: {_TO_MEND[NO_ROOM]}" if says_no_room(text) else None


def results_first(command: Callable[..., None]) -> Callable[..., None]:
    """A step whose results are files: it goes on where its output can't be written (a closed pipe, a full disk)."""

    @wraps(command)
    def kept(**options: Any) -> None:
        with kept_output():
            command(**options)

    return kept
