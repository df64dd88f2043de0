"""The state of a search: which trial comes next, and what a report or an end means. It knows no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from maskpro.tuning.history import History, TrialRecord
from maskpro.tuning.searcher import METRIC, SearchStudy


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A trial that is run as it stands.

    Attributes:
        samples: where it is told to stop; None: where the early stopping says.
    """

    params: Mapping[str, Any]
    source: str
    seed: int
    samples: int | None = None


class TrialSource(Protocol):
    """What an experiment's trials come from and are judged by; all of it is in `history`."""

    history: History

    def next_trial(self) -> TrialRecord | None:
        """The next trial to run: an unfinished one that nobody runs yet, else a new one; None: no more."""

    def report(self, number: int, metrics: Mapping[str, Any]) -> bool:
        """Take in a trial's report; whether the trial ends early on it. The same report twice gets the same answer."""

    def finish(self, number: int) -> None:
        """A trial has ended, in whatever way."""


class SearchState:
    """The trials of a search: first the planned ones, then those that the study suggests, until there are enough.

    Args:
        planned: of the trials 1, 2, ..., such as the seed points.
        seed: of the trials that the study suggests.
    """

    def __init__(self, history: History, study: SearchStudy, *, planned: Sequence[Plan], seed: int):
        self.history = history
        self._study = study
        self._planned = planned
        self._seed = seed
        study.replay(history)
        self._limits = {record.number: plan.samples for record, plan in zip(history.searched, planned, strict=False)}
        self._waiting = [record for record in history.unfinished if not record.is_confirmation]

    def next_trial(self) -> TrialRecord | None:
        """See TrialSource."""
        if self._waiting:
            return self._waiting.pop(0)
        started = len(self.history.searched)
        if started >= self.history.num_trials:
            return None
        if started < len(self._planned):
            plan = self._planned[started]
            record = self.history.start(dict(plan.params), source=plan.source, seed=plan.seed)
            self._limits[record.number] = plan.samples
        else:
            params = self._study.suggest(max(self.history.trials, default=0) + 1)
            record = self.history.start(params, source=self._study.searcher, seed=self._seed)
        self._study.begin(record)
        return record

    def report(self, number: int, metrics: Mapping[str, Any]) -> bool:
        """See TrialSource."""
        record = self.history.trials[number]
        samples = metrics["num_samples_seen"]
        if samples in record.reports:  # the trial went back to its last checkpoint, and is told what it was told before
            return record.stopped and samples == record.samples
        stopped = not metrics["done"] and (
            self._study.should_stop(number, samples, metrics[METRIC]) or samples >= (self._limits.get(number) or math.inf)
        )
        self.history.report(number, plain_metrics(metrics), stopped=stopped)
        return stopped

    def finish(self, number: int) -> None:
        """See TrialSource."""
        self._study.finish(self.history.trials[number])


class PlannedTrials:
    """Trials that are run to their full budget as they stand, beside the search: nothing is suggested or stopped early."""

    def __init__(self, history: History, planned: Sequence[Plan]):
        self.history = history
        done = [(record.source, record.seed) for record in history.trials.values()]
        self._planned = [plan for plan in planned if (plan.source, plan.seed) not in done]
        sources = {plan.source for plan in planned}
        self._waiting = [record for record in history.unfinished if record.source in sources]

    @property
    def num_left(self) -> int:
        """How many are still to be run or finished."""
        return len(self._waiting) + len(self._planned)

    def next_trial(self) -> TrialRecord | None:
        """See TrialSource."""
        if self._waiting:
            return self._waiting.pop(0)
        if not self._planned:
            return None
        plan = self._planned.pop(0)
        return self.history.start(dict(plan.params), source=plan.source, seed=plan.seed)

    def report(self, number: int, metrics: Mapping[str, Any]) -> bool:
        """See TrialSource."""
        if metrics["num_samples_seen"] not in self.history.trials[number].reports:
            self.history.report(number, plain_metrics(metrics), stopped=False)
        return False

    def finish(self, number: int) -> None:
        """See TrialSource."""


# Of what a trial reports, what the history keeps.
METRICS = (
    "num_samples_seen",
    "val_loss",
    "val_loss_now",
    "best_val_loss",
    "initial_val_loss",
    "train_loss",
    "recovery",
    "loss_improvement",
    "changed_share",
    "seconds",
    "failure",
    "done",
)


def plain_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that the history keeps, as JSON can hold them: a value that is undefined is None."""
    kept = {name: metrics[name] for name in METRICS if name in metrics}
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in kept.items()}
