"""A search seen and ended from another terminal: `maskpro monitor` and `maskpro stop`; imports neither Ray nor torch."""

from __future__ import annotations

import datetime
import math
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.live import Live

from maskpro.errors import MaskproError
from maskpro.files import read_json
from maskpro.monitoring.devices import DeviceMeter
from maskpro.monitoring.view import (
    REFRESH_SECONDS,
    Row,
    SearchSnapshot,
    live_view,
    plain_summary,
    summary_rows,
    take_snapshot,
)
from maskpro.schedule.folder import EVALUATION_FILE, EXPERIMENT_FILE, HISTORY_FILE, resuming
from maskpro.schedule.history import HistoryReader
from maskpro.schedule.lock import Holder, has_lock_open, is_held, read_holder
from maskpro.schedule.rungs import Ladder

# Between two looks at a lock whose search was asked to end.
_WAIT_SECONDS = 0.1

Standing = Literal["running", "evaluating", "ended", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Sight:
    """An experiment at one moment, and whether its search runs."""

    folder: Path
    standing: Standing
    snapshot: SearchSnapshot

    @property
    def is_running(self) -> bool:
        """Whether a process works on it."""
        return self.standing in ("running", "evaluating")

    @property
    def title(self) -> str:
        """How the experiment stands, in one line."""
        text = {
            "running": "running",
            "evaluating": "running; its trials have ended, the best are evaluated",
            "ended": "has ended",
            "interrupted": f"was interrupted; resume with tune_main.py {resuming(self.folder)}",
        }[self.standing]
        return f"{self.folder}: {text}"

    def rows(self, devices: list[Row]) -> list[Row]:
        """What there is to say of it."""
        return summary_rows(self.snapshot, devices if self.is_running else [], is_running=self.is_running)

    def event(self) -> tuple[Any, ...]:
        """What makes a new block of plain lines worth while when it changes; the samples seen change all the time."""
        seen = self.snapshot
        best = None if seen.best is None else seen.best.number
        return self.standing, seen.unfinished, seen.completed, seen.stopped, seen.failed, seen.num_trials, best


class ExperimentWatcher:
    """Looks at an experiment's folder, again and again, and reads only what is new.

    Raises:
        MaskproError: there is no experiment, or its files are broken.
    """

    def __init__(self, folder: Path):
        _check_folder(folder)
        if not (folder / HISTORY_FILE).is_file():
            raise MaskproError(f"experiment is {folder}, which has no {HISTORY_FILE}; allowed: one that tune_main.py began")
        self._folder = folder
        self._reader = HistoryReader(folder / HISTORY_FILE)
        self._max_samples, self._ladder = _lengths(folder)

    def look(self, now: datetime.datetime) -> Sight:
        """The experiment at `now`; of one that does not run, as its history's last line left it."""
        is_running = is_held(self._folder)  # first, so that the history of one that has ended is read to its end
        self._reader.read()
        if not is_running:
            now = datetime.datetime.fromtimestamp((self._folder / HISTORY_FILE).stat().st_mtime, datetime.UTC)
        history = self._reader.history
        confirmations = len(history.trials) - len(history.searched)
        snapshot = take_snapshot(
            history,
            num_trials=history.num_trials + confirmations,
            max_samples=self._max_samples,
            now=now,
            ladder=self._ladder,
        )
        return Sight(folder=self._folder, standing=_standing(self._folder, snapshot, is_running), snapshot=snapshot)


def newest_experiment(results: Path) -> Path:
    """The experiment in `results` whose history was written to last.

    Raises:
        MaskproError: there is none.
    """
    histories = sorted(results.glob(f"*/{HISTORY_FILE}"), key=lambda path: path.stat().st_mtime)
    if not histories:
        raise MaskproError(f"experiment is missing and none is in {results}/; allowed: the folder of one")
    return histories[-1].parent


def monitor_search(folder: Path, *, once: bool, console: Console) -> None:
    """Show an experiment until its search has ended: live in a terminal, elsewhere a block of lines per change.

    Args:
        once: show it as it stands, and return.

    Raises:
        MaskproError: there is no experiment in `folder`, or its files are broken.
    """
    watcher = ExperimentWatcher(folder)
    sight = watcher.look(_now())
    if once or not sight.is_running:
        _print_plain(console, sight, DeviceMeter().complete_rows() if sight.is_running else [])
        return
    meter = DeviceMeter()
    if console.is_terminal:
        _print_plain(console, _follow_live(watcher, sight, meter, console), [])
    else:
        _follow_plain(watcher, sight, meter, console)


def _follow_live(watcher: ExperimentWatcher, sight: Sight, meter: DeviceMeter, console: Console) -> Sight:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while sight.is_running:
            live.update(live_view(sight.title, sight.snapshot, sight.rows(meter.rows())), refresh=True)
            time.sleep(REFRESH_SECONDS)
            sight = watcher.look(_now())
    return sight


def _follow_plain(watcher: ExperimentWatcher, sight: Sight, meter: DeviceMeter, console: Console) -> None:
    _print_plain(console, sight, meter.rows())
    shown = sight.event()
    while sight.is_running:
        time.sleep(REFRESH_SECONDS)
        sight = watcher.look(_now())
        if sight.event() != shown:
            shown = sight.event()
            _print_plain(console, sight, meter.rows())


def _print_plain(console: Console, sight: Sight, devices: list[Row]) -> None:
    """As it is: neither wrapped nor coloured, for a pipe."""
    print(plain_summary(sight.title, sight.rows(devices)), file=console.file, flush=True)


def stop_search(folder: Path, *, timeout: float) -> str:
    """End the search that runs in `folder`, so that it can be resumed later; how it stands then.

    Args:
        timeout: seconds to wait for its end.

    Raises:
        MaskproError: nothing runs there, it runs on another host, or it does not end in time.
    """
    if not (math.isfinite(timeout) and timeout > 0):
        raise MaskproError(f"timeout is {timeout}; allowed: a number of seconds above 0")
    _check_folder(folder)
    if not is_held(folder):
        raise MaskproError(f"experiment {folder} is not running; allowed: one that is")
    _terminate(folder, _local_holder(folder))
    deadline = time.monotonic() + timeout
    while is_held(folder):
        if time.monotonic() > deadline:
            raise MaskproError(
                f"experiment {folder} was asked to end, but has not within {timeout:g} seconds (timeout); allowed: to wait "
                "longer, see maskpro monitor"
            )
        time.sleep(_WAIT_SECONDS)
    if not (folder / HISTORY_FILE).is_file():
        return f"{folder}: stopped before anything was begun; start it anew by its name"
    return ExperimentWatcher(folder).look(_now()).title


def _local_holder(folder: Path) -> Holder:
    """The process of this host that runs the search in `folder`, whose lock is held."""
    holder = read_holder(folder)
    if holder is None:
        raise MaskproError(
            f"experiment {folder} is run by a process that does not say which; allowed: one that is well under way, and of "
            "this version"
        )
    if holder.host != socket.gethostname():
        raise MaskproError(
            f"experiment {folder} runs on host {holder.host}, as process {holder.pid}; allowed: maskpro stop on that host"
        )
    return holder


def _terminate(folder: Path, holder: Holder) -> None:
    try:
        if has_lock_open(folder, holder.pid):
            os.kill(holder.pid, signal.SIGTERM)
        elif is_held(folder):
            raise MaskproError(
                f"experiment {folder} is locked, but not by process {holder.pid} of this machine; allowed: maskpro stop "
                "where it runs"
            )
    except ProcessLookupError:  # it has ended by itself
        pass
    except PermissionError:
        raise MaskproError(
            f"experiment {folder} is run by process {holder.pid} of somebody else; allowed: a search of your own"
        ) from None


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise MaskproError(f"experiment is {folder}; no folder there (allowed: an experiment's, such as results/default)")


def _lengths(folder: Path) -> tuple[int | None, Ladder | None]:
    """Samples of a trial with its full budget, and how far trials run; None where a kill came before that was written."""
    path = folder / EXPERIMENT_FILE
    if not path.is_file():
        return None, None
    try:
        described = read_json(path)
        return int(described["trial"]["max_samples"]), Ladder.of_record(described)
    except (LookupError, TypeError, ValueError) as error:
        raise MaskproError(f"{path} does not say how long its trials are; allowed: the file as it was written") from error


def _standing(folder: Path, snapshot: SearchSnapshot, is_running: bool) -> Standing:
    if is_running:
        return "running" if snapshot.has_work else "evaluating"
    came_to_nothing = 0 < snapshot.failed == snapshot.num_trials
    is_over = (folder / EVALUATION_FILE).is_file() or came_to_nothing
    return "ended" if is_over and not snapshot.has_work else "interrupted"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
