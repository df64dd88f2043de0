"""What a command finds of its process: closed streams, names that are no text here, too few open files.

It imports the standard library alone, as all of this comes first.
"""

from __future__ import annotations

import io
import os
import pwd
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from maskpro.errors import MaskproError

# Hears a sentence for the user.
Say = Callable[[str], None]
# As many as Linux lets a process have without asking; Ray's own processes take hundreds.
_WANTED_FILES = 4096
_ERROR = "error"
# All at which `str.splitlines` and some terminals begin a new line.
_LINE_BREAKS = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")


def open_closed_streams() -> None:
    """Let the standard streams that the process was started without lead nowhere.

    The next file that is opened would have their numbers, and whatever a library in C says to the screen would be
    written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def show_all_characters() -> None:
    """Characters that the terminal's encoding lacks are shown by their numbers, and end nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def one_line(text: str) -> str:
    """The text with its line breaks, which names of files may have, as Python writes them."""
    return "".join(repr(part)[1:-1] if part in _LINE_BREAKS else part for part in text)


def say_aside(text: str) -> None:
    """One line beside the results, on the standard error; none where the process was started without.

    `print` takes a missing standard error for the standard output, where only results belong.
    """
    if sys.stderr is not None:
        print(one_line(text), file=sys.stderr, flush=True)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody sees it; Python has None for a stream that the process was started without."""
    return stream is not None and stream.isatty()


def raise_file_limit(wanted: int = _WANTED_FILES) -> int:
    """Let this process and those it starts open more files, where its hard limit allows; how many it may open then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(soft, most)


def provide_home(environment: MutableMapping[str, str]) -> str:
    """A home, and a name, for a user whom this machine doesn't know, as in containers; what there is to say of it.

    Ray and torch ask for both as they are imported, and end where there are none.
    """
    user = str(os.getuid())
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        if not any(environment.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
            environment["LOGNAME"] = user
    else:
        return ""
    if environment.get("HOME"):
        return ""
    home = Path(tempfile.gettempdir()) / f"home-{user}"
    with suppress(OSError):
        home.mkdir(mode=0o700, exist_ok=True)
    if not home.is_dir() or home.stat().st_uid != os.getuid():
        home = Path(tempfile.mkdtemp(prefix=f"home-{user}-"))
    environment["HOME"] = str(home)
    return f"HOME is not set, and this machine knows no user {user}; it is {home} for this process"


def current_folder() -> str:
    """Where this process is.

    Raises:
        MaskproError: somebody has removed it.
    """
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise MaskproError("the current folder has been removed; allowed: to be in a folder that there is") from error


def keep_warnings(environment: MutableMapping[str, str]) -> str:
    """Let warnings end no process that this one starts; what there is to say of it.

    PYTHONWARNINGS=error is meant for a program of one's own. Ray's processes, which inherit it, end at their first warning.
    """
    name = "PYTHONWARNINGS"
    given = environment.get(name, "")
    # Python takes the beginning of an action's name for it, as in -W e.
    kept = [
        part for part in given.split(",") if not (action := part.partition(":")[0].strip()) or not _ERROR.startswith(action)
    ]
    if len(kept) == len(given.split(",")):
        return ""
    environment[name] = ",".join(kept)
    return f"{name} is {given}, at which Ray's processes would end; it holds for this process alone"


def check_texts(texts: Iterable[str], encoding: str | None = None) -> None:
    """Raise where an argument is empty, or where it or the current folder has characters that can't name files everywhere.

    An empty name of a folder would be the current folder. Ray and pyarrow name files in UTF-8 whatever the locale; a name
    in another encoding would be two files.

    Args:
        encoding: of file names; default: the locale's.
    """
    encoding = encoding or sys.getfilesystemencoding()
    for text in texts:
        if not text or (text.startswith("--") and text.find("=") == len(text) - 1):
            raise MaskproError(
                f"argument {text!r} is empty, as of a variable that isn't set; allowed: a value, or none of that option"
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # bytes that the encoding lacks
            is_text = False
        else:
            is_text = text.isascii() or encoding.lower().replace("-", "") == "utf8"
        if not is_text:
            raise MaskproError(
                f"{text!a} is no text in UTF-8 (the encoding of names is {encoding}); allowed: names in UTF-8, and in "
                "a locale of UTF-8 such as LC_ALL=C.UTF-8 (or with PYTHONUTF8=1) if they are not plain ASCII"
            )
