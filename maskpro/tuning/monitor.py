"""Progress of a running search in the terminal: a live bar there, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Between two plain lines that only report progress.
_QUIET_SECONDS = 15.0


class SearchMonitor(Callback):
    """Prints each trial's end, the best so far, and an estimate of the time left.

    Tune stores its callbacks with the experiment, so everything here but the live bar can be pickled.
    """

    def __init__(self, *, num_trials: int, metric: str):
        self._num_trials = num_trials
        self._metric = metric
        self._best: tuple[float, float, int] | None = None  # metric, recovery, trial number
        self._numbers: dict[str, int] = {}
        self._samples: dict[str, int] = {}
        self._ended: set[str] = set()
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bar": None}

    def setup(self, *args: Any, **info: Any) -> None:
        """Called by Tune as the search starts or is resumed."""
        self._started = self._last_line = time.monotonic()
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("trials,"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=Console(), transient=True)
            self._bar.add_task("searching", total=self._num_trials)
            self._bar.start()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial starts, or goes on after a restore."""
        self._number(trial)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """A trial has reported."""
        number = self._number(trial)
        value = result[self._metric]
        self._samples[trial.trial_id] = result["num_samples_seen"]
        if not result.get("failure") and (self._best is None or value < self._best[0]):
            self._best = (value, result["recovery"], number)
        now = time.monotonic()
        if self._bar is None and now - self._last_line >= _QUIET_SECONDS:
            self._last_line = now
            self._say(f"trial {number} at {result['num_samples_seen']:,} samples{self._standing()}")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=f"trial {number}{self._standing()}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended by itself, at its budget or early."""
        self._end(trial)
        result = trial.last_result or {}
        reason = f"failed ({result['failure']})" if result.get("failure") else f"recovery {result.get('recovery', 0):.3f}"
        seen = result.get("num_samples_seen", 0)
        self._say(
            f"trial {self._number(trial)} of {self._num_trials} ended at {seen:,} samples: {reason}{self._standing()}"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended with an error."""
        self._end(trial)
        self._say(f"trial {self._number(trial)} of {self._num_trials} failed; its error is in {trial.path}")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """All trials are done, or the search is stopped."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _end(self, trial: Any) -> None:
        self._ended.add(trial.trial_id)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=len(self._ended))

    def _number(self, trial: Any) -> int:
        return self._numbers.setdefault(trial.trial_id, len(self._numbers) + 1)

    def _standing(self) -> str:
        best = "" if self._best is None else f"; best recovery {self._best[1]:.3f} (trial {self._best[2]})"
        elapsed = time.monotonic() - self._started
        left = self._seconds_left(elapsed)
        return f"{best}; {elapsed:.0f} s" + ("" if left is None else f", about {left:.0f} s left")

    def _seconds_left(self, elapsed: float) -> float | None:
        """Samples still to come, if later trials take what the ended ones took, at the rate so far."""
        if not self._ended:
            return None
        mean = sum(self._samples.get(trial_id, 0) for trial_id in self._ended) / len(self._ended)
        running = self._numbers.keys() - self._ended
        to_come = (self._num_trials - len(self._numbers)) * mean
        to_come += sum(max(0.0, mean - self._samples.get(trial_id, 0)) for trial_id in running)
        return to_come * elapsed / max(1, sum(self._samples.values()))

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, flush=True)
