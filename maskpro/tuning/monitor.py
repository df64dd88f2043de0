"""Progress of a running search in the terminal: a live bar there, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from maskpro.tuning.adapters import NUMBER
from maskpro.tuning.history import History, TrialRecord

# Between two plain lines that only report progress.
_QUIET_SECONDS = 15.0
# Between two changes of the live bar.
_LIVE_SECONDS = 0.2


class SearchMonitor(Callback):
    """Prints each trial's end, the best so far, and an estimate of the time left; it must stand after HistoryCallback."""

    def __init__(self, history: History, *, num_trials: int):
        self._history = history
        self._num_trials = num_trials
        self._best: TrialRecord | None = None
        ended = [record for record in history.trials.values() if record.status != "unfinished"]
        for record in ended:
            self._consider(record)
        self._ended = {record.number: record.samples for record in ended}
        self._ended_samples = sum(self._ended.values())
        self._session_samples = 0
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune's snapshots are never restored."""
        return {}

    def setup(self, *args: Any, **info: Any) -> None:
        """Called by Tune as the search starts or goes on."""
        self._started = self._last_line = time.monotonic()
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("trials,"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=Console(), transient=True)
            self._bar.add_task("searching", total=self._num_trials)
            self._bar.start()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """A trial has reported."""
        record = self._history.trials[trial.config[NUMBER]]
        self._consider(record)
        self._session_samples += self._new_samples(record)
        now = time.monotonic()
        if now - self._last_line < (_QUIET_SECONDS if self._bar is None else _LIVE_SECONDS):
            return
        self._last_line = now
        if self._bar is None:
            self._say(f"trial {record.number} at {record.samples:,} samples{self._standing()}")
        else:
            description = f"trial {record.number}{self._standing()}"
            self._bar.update(self._bar.task_ids[0], description=description, completed=len(self._ended))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended by itself, at its budget or early."""
        record = self._history.trials[trial.config[NUMBER]]
        self._ended_samples += record.samples - self._ended.get(record.number, 0)
        self._ended[record.number] = record.samples  # one that goes on after a stop is counted once
        recovery = record.last.get("recovery")
        reached = "recovery undefined" if recovery is None else f"recovery {recovery:.3f}"
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
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _consider(self, record: TrialRecord) -> None:
        if record.reports and not record.failure:
            is_better = self._best is None or record.last["val_loss"] < self._best.last["val_loss"]
            self._best = record if is_better else self._best

    def _new_samples(self, record: TrialRecord) -> int:
        earlier = [samples for samples in record.reports if samples < record.samples]
        return record.samples - max(earlier, default=0)

    def _standing(self) -> str:
        best = ""
        if self._best is not None:
            best = f"; best recovery {self._best.last.get('recovery') or 0:.3f} (trial {self._best.number})"
        elapsed = time.monotonic() - self._started
        left = self._seconds_left(elapsed)
        return f"{best}; {elapsed:.0f} s" + ("" if left is None else f", about {left:.0f} s left")

    def _seconds_left(self, elapsed: float) -> float | None:
        """Samples still to come, if later trials take what the ended ones took, at the rate so far."""
        if not self._ended or not self._session_samples:
            return None
        mean = self._ended_samples / len(self._ended)
        to_come = (self._num_trials - len(self._ended)) * mean
        return to_come * elapsed / self._session_samples

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, flush=True)
