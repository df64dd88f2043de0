"""Ending a search before its time, so that it can be resumed: Ctrl-C, SIGTERM, SIGHUP, a time budget, a full disk."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from maskpro.errors import MaskproError


class Interruption:
    """Why a search is ended before its time; "" while nobody has asked.

    Attributes:
        reason: who or what asked: Ctrl-C, a signal's name, the time budget, or what of the machine failed.
        problem: one sentence where the machine failed, for the user to mend; else "".
    """

    def __init__(self) -> None:
        self.reason = ""
        self.problem = ""

    def ask(self, reason: str) -> None:
        """End the search: Tune leaves its loop on SIGUSR1 as on Ctrl-C, but SIGTERM would kill it."""
        self.reason = self.reason or reason
        os.kill(os.getpid(), signal.SIGUSR1)

    def pause(self, reason: str, problem: str) -> None:
        """End the search over a fault of the machine that no trial is to blame for; the first one counts."""
        self.note(reason, problem)
        os.kill(os.getpid(), signal.SIGUSR1)

    def note(self, reason: str, problem: str) -> None:
        """As `pause`, where the search has ended by itself."""
        self.reason = self.reason or reason
        self.problem = self.problem or problem


@contextmanager
def interruptible(interruption: Interruption, time_budget: float | None) -> Iterator[None]:
    """Makes SIGTERM, SIGHUP, and the end of `time_budget` seconds, end a search within as Ctrl-C does.

    Before and after Tune's own loop they raise KeyboardInterrupt. Under `nohup` SIGHUP stays ignored.
    """

    def terminate(number: int, frame: FrameType | None) -> None:
        interruption.ask(signal.Signals(number).name)

    def outside_of_tune(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, terminate),
        signal.SIGHUP: signal.signal(
            signal.SIGHUP, signal.SIG_IGN if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else terminate
        ),
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, outside_of_tune),
    }
    timer = threading.Timer(time_budget or 0, interruption.ask, ["the time budget"])
    timer.daemon = True
    if time_budget is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_status(reason: str) -> int:
    """Exit status of a process that has ended early, for a reason as `Interruption` has it."""
    return {"the time budget": 0, "SIGTERM": 143, "SIGHUP": 129}.get(reason, 130)


def parse_duration(text: str, field: str = "time_budget") -> float:
    """Seconds of a duration in days, hours, minutes and seconds, such as 2h, 90min, 1h30m or 1d.

    Raises:
        MaskproError: it is none.
    """
    # pandas reads "2,5h" as 25 hours and "+5" as five nanoseconds.
    number = r"(\d+(?:\.\d+)?)"
    parts = re.fullmatch(rf"(?:{number}d)?(?:{number}h)?(?:{number}m(?:in)?)?(?:{number}s)?", text.replace(" ", ""))
    amounts = parts.groups(default="0") if parts else ()
    seconds = sum(float(amount) * unit for amount, unit in zip(amounts, (86_400, 3_600, 60, 1), strict=False))
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise MaskproError(f"{field} is {text!r}; allowed: a duration with its unit, such as 2h, 90min or 1h30m")
    return seconds
