"""What the terminal does not show: the log of Ray and of Python's warnings, and lines that the terminal could not take."""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from maskpro.machine.process import one_line, show_all_characters
from maskpro.schedule.folder import DRIVER_LOG

# Lines that were meant for the terminal. They wait here until there is a folder to write them to.
_SCREEN = "maskpro.screen"
_MOST_WAITING = 10_000


@contextmanager
def driver_log(folder: Path) -> Iterator[None]:
    """Ray's log of this process and Python's warnings go into `driver.log` in `folder`, which is made by the first line.

    The terminal shows the search; a trial that fails is told of there in any case. Lines that it can't take are here too.
    """
    file = _LogFile(folder / DRIVER_LOG, delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("ray", "py.warnings", _SCREEN)]
    earlier = [logger.handlers for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        for handler in logger.handlers:
            if isinstance(handler, logging.handlers.MemoryHandler):
                handler.setTarget(file)
                handler.flush()
                handler.setTarget(None)
        logger.handlers = [file]
    try:
        yield
    finally:
        for logger, handlers in zip(loggers, earlier, strict=True):
            logger.handlers = handlers
        logging.captureWarnings(False)
        file.close()


@contextmanager
def kept_output() -> Iterator[None]:
    """Output that can't be written (a closed pipe or terminal, a full disk) ends nothing within.

    Its lines go into the log of `driver_log`, those before it as well.
    """
    logger = logging.getLogger(_SCREEN)
    waiting = logging.handlers.MemoryHandler(_MOST_WAITING, flushLevel=logging.CRITICAL + 1)
    logger.handlers, logger.propagate = [waiting], False
    logger.setLevel(logging.INFO)
    show_all_characters()  # also names, and box-drawing characters
    earlier = sys.stdout, sys.stderr
    screens = [_Screen(stream, logger) for stream in earlier]
    sys.stdout, sys.stderr = screens
    try:
        yield
    finally:
        for screen in screens:
            screen.flush()
        sys.stdout, sys.stderr = earlier
        logger.handlers = []


class _LogFile(logging.FileHandler):
    """A log that is not worth a search: where its disk is full, lines are lost."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the standard one prints a traceback."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class _Screen(io.TextIOBase):
    """A text stream for as long as it takes what is written, then the log.

    Args:
        stream: None where the process was started without.
    """

    def __init__(self, stream: TextIO | None, logger: logging.Logger):
        super().__init__()
        self._stream = stream
        self._logger = logger
        self._unflushed = ""

    def __getattr__(self, name: str) -> Any:
        """`encoding`, `buffer` and whatever else the stream has."""
        return getattr(self.__dict__.get("_stream"), name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream; rich draws boxes by it."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        """File descriptor of the stream."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether somebody sees it."""
        return self._stream is not None and self._stream.isatty()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """To the stream, or to the log."""
        self._unflushed += text
        if self._stream is None:
            self._log()
            return len(text)
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: closed
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """What the stream can't take goes to the log."""
        if self._stream is None:
            self._log()
            return
        try:
            self._stream.flush()
            self._unflushed = ""
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        with suppress(OSError, ValueError):
            # The stream still holds what it could not write, and Python would fail on it at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        self._stream = None
        self._logger.info("output can't be written (%s); its lines are here from now on", error)
        self._log()

    def _log(self) -> None:
        *lines, self._unflushed = self._unflushed.split("\n")
        for line in lines:
            if line.strip():
                self._logger.info(line)


def say(text: str) -> None:
    """One plain line, at once."""
    print(one_line(text), flush=True)
