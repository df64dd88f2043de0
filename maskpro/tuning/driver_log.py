"""What Ray and Python's warnings have to say in the driver, kept in a file instead of the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DRIVER_LOG = "driver.log"


@contextmanager
def driver_log(folder: Path) -> Iterator[None]:
    """Ray's log of this process and Python's warnings go into `driver.log` in `folder`, which is made by the first line.

    The terminal shows the search; a trial that fails is told of there in any case.
    """
    file = logging.FileHandler(folder / DRIVER_LOG, delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("ray", "py.warnings")]
    earlier = [logger.handlers for logger in loggers]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.handlers = [file]
    try:
        yield
    finally:
        for logger, handlers in zip(loggers, earlier, strict=True):
            logger.handlers = handlers
        logging.captureWarnings(False)
        file.close()
