"""A running search in its own terminal: a live view there, plain lines elsewhere; and in the trackers that were named."""

from __future__ import annotations

import datetime
import math
import sys
import time
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.live import Live

from maskpro.fidelity import format_share
from maskpro.monitoring.devices import DeviceMeter
from maskpro.monitoring.view import REFRESH_SECONDS, SearchSnapshot, live_view, summary_rows, take_snapshot
from maskpro.schedule.history import History, TrialRecord
from maskpro.schedule.ranking import best_so_far
from maskpro.schedule.rungs import Ladder
from maskpro.search_options import SearchOptions
from maskpro.tuning.adapters import NUMBER

# Between two plain lines that only report progress.
_QUIET_SECONDS = 15.0
# A snapshot looks at every trial; an estimate may be this old.
_ESTIMATE_SECONDS = 2.0
# Looking at all trials takes no more than about one part in so many of the time.
_SHARE = 20


class SearchMonitor(Callback):
    """Shows the search as it goes; it must stand after HistoryCallback.

    In a terminal that is one view, drawn anew twice a second. Elsewhere it is a line for each trial's end, and one for
    progress where none ends for a while, with the best so far and an estimate of the time left.
    """

    def __init__(self, history: History, *, num_trials: int, max_samples: int | None = None, ladder: Ladder | None = None):
        self._history = history
        self._num_trials = num_trials
        self._max_samples = max_samples
        self._ladder = ladder
        # The clock may be set while the search runs; it is read once, and what has passed since is measured.
        self._begun, self._begun_at = datetime.datetime.now(datetime.UTC), time.monotonic()
        self._started = self._last_shown = time.monotonic()
        self._seconds_left: float | None = None
        self._best: TrialRecord | None = None
        self._looked, self._look_seconds = -math.inf, 0.0
        self._estimated = -math.inf
        self._live: Live | None = None
        self._meter: DeviceMeter | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's snapshots are never restored."""
        return {}

    def setup(self, *args: Any, **info: Any) -> None:
        """Called by Tune as the search starts or is resumed."""
        self._started = self._last_shown = time.monotonic()
        if sys.stdout.isatty():
            self._meter = DeviceMeter()
            # Drawn by the thread that changes the history, not by one of its own.
            self._live = Live(console=Console(), auto_refresh=False, transient=True)
            self._live.start()
            self._draw()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Tune several times a second."""
        if self._live is not None and not sys.stdout.isatty():  # the terminal is gone
            self._live.stop()
            self._live = None
        if self._live is not None and time.monotonic() - self._last_shown >= max(REFRESH_SECONDS, self._pause):
            self._draw()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """A trial has reported."""
        now = time.monotonic()
        if self._live is None and now - self._last_shown >= _QUIET_SECONDS:
            self._last_shown = now
            # Not the record's: a run that begins anew repeats reports, which are not recorded.
            self._say(f"trial {trial.config[NUMBER]} at {result['num_samples_seen']:,} samples{self._standing()}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended by itself, at its budget or early."""
        if self._live is not None:
            return
        record = self._history.trials[trial.config[NUMBER]]
        reached = f"fidelity {format_share(record.last.get('fidelity'))}"
        reason = f"failed ({record.failure})" if record.failure else reached
        how = "stopped" if record.status == "stopped" else "ended"
        self._say(
            f"trial {record.number} of {self._num_trials} {how} at {record.samples:,} samples: {reason}{self._standing()}"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended with an error."""
        self._say(f"trial {trial.config[NUMBER]} of {self._num_trials} failed; its error is in {trial.path}")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """All trials are done, or the search is stopped."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self) -> None:
        assert self._live is not None
        assert self._meter is not None
        begun = time.monotonic()
        snapshot = self._snapshot()
        self._look_seconds = time.monotonic() - begun
        self._live.update(live_view("searching", snapshot, summary_rows(snapshot, self._meter.rows())), refresh=True)
        self._last_shown = time.monotonic()

    def _snapshot(self) -> SearchSnapshot:
        now = self._begun + datetime.timedelta(seconds=time.monotonic() - self._begun_at)
        return take_snapshot(
            self._history, num_trials=self._num_trials, max_samples=self._max_samples, now=now, ladder=self._ladder
        )

    @property
    def _pause(self) -> float:
        """Seconds from one look at all trials to the next."""
        return _SHARE * self._look_seconds

    def _standing(self) -> str:
        if (now := time.monotonic()) - self._looked >= self._pause:
            self._best = best_so_far(self._history.trials.values(), self._history.min_sparse_share)
            if now - self._estimated >= max(_ESTIMATE_SECONDS, self._pause):
                self._estimated, self._seconds_left = now, self._snapshot().seconds_left
            self._looked = time.monotonic()
            self._look_seconds = self._looked - now
        best = ""
        if self._best is not None:
            best = f"; best fidelity {format_share(self._best.last.get('fidelity'))} (trial {self._best.number})"
        left = "" if self._seconds_left is None else f", about {self._seconds_left:.0f} s left"
        return f"{best}; {now - self._started:.0f} s{left}"

    def _say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)


def trackers(options: SearchOptions) -> list[Callback]:
    """The trackers that were asked for."""
    # Where they send it is their own setting: SWANLAB_MODE=offline and WANDB_MODE=offline keep everything on this machine,
    # MLFLOW_TRACKING_URI names a server.
    found: list[Callback] = []
    if options.swanlab is not None:
        from swanlab.integration.ray import SwanLabLoggerCallback

        found.append(SwanLabLoggerCallback(project=options.swanlab, log_config=True))
    if options.wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        found.append(WandbLoggerCallback(project=options.wandb, group=options.experiment, dir=str(options.folder)))
    if options.mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        found.append(MLflowLoggerCallback(experiment_name=options.mlflow, tags={"experiment": options.experiment}))
    return found
