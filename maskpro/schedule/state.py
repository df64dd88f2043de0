"""The state of a search: the choice of the next trial, and the meaning of reports and ends. It knows no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from maskpro.schedule.early_stopping import SuccessiveHalving
from maskpro.schedule.history import COMMON_FIDELITY, METRIC, SHARE, History, TrialRecord
from maskpro.schedule.searcher import SearchStudy


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A planned trial with given parameters.

    Attributes:
        samples: samples at which it must stop; None: the early stopping decides.
    """

    params: Mapping[str, Any]
    source: str
    seed: int
    samples: int | None = None


class TrialSource(Protocol):
    """Source and judge of an experiment's trials; its whole state is in `history`."""

    history: History

    def next_trial(self) -> TrialRecord | None:
        """The next trial to run, resumed from its checkpoint or new; None: none for now."""

    @property
    def is_over(self) -> bool:
        """True when nothing runs and nothing is left to run."""

    def report(self, number: int, metrics: Mapping[str, Any]) -> bool:
        """Take in a trial's report; True if the trial ends early. The same report always gets the same answer."""

    def budget(self, record: TrialRecord) -> int | None:
        """Budget of the run that a trial is in or begins next, if it is one of several; None: its only run."""

    def put_back(self, number: int) -> None:
        """A trial has lost its process before it resumed, and shall start again from the same place."""

    def finish(self, number: int) -> None:
        """A trial has stopped or ended, in whatever way."""

    @property
    def stopped_may_go_on(self) -> bool:
        """Whether a stopped trial may be promoted, in this session or in a later one, which may have more trials."""


class SearchState:
    """The trials of a search: first the planned ones, then suggestions of the study, until there are enough.

    Args:
        planned: plans of the trials 1, 2, ..., such as the seed points.
        seed: seed of the trials that the study suggests.
        halving: stops and promotes trials; None: the study's pruner alone stops them, for good.
        min_completed: least number of trials that run to their full budget; if too few have, the best stopped ones are
            promoted.
        restarts: whether a promoted trial is trained anew (see `SuccessiveHalving`).
    """

    def __init__(
        self,
        history: History,
        study: SearchStudy,
        *,
        planned: Sequence[Plan],
        seed: int,
        halving: SuccessiveHalving | None = None,
        min_completed: int = 1,
        restarts: bool = False,
    ):
        self.history = history
        self.study = study
        self._planned = planned
        self._seed = seed
        self._halving = halving
        self._min_completed = min_completed
        self._restarts = restarts
        study.replay(history)
        if halving is not None:
            halving.replay(history.searched)
        self._limits = {record.number: plan.samples for record, plan in zip(history.searched, planned, strict=False)}
        self._interrupted = [record for record in history.searched if record.status == "unfinished"]
        self._live: set[int] = set()

    def next_trial(self) -> TrialRecord | None:
        """See TrialSource."""
        record = self._to_go_on()
        if record is not None:
            self._interrupted = self._interrupted[1:]
            self._live.add(record.number)
            promoted = record.status == "stopped"
            if promoted and self._halving is not None:
                self._halving.promote(record)
            return self.history.go_on(record.number, promoted=promoted)
        started = len(self.history.searched)
        if started >= self.history.num_trials:
            return None
        if started < len(self._planned):
            plan = self._planned[started]
            record = self.history.start(dict(plan.params), source=plan.source, seed=plan.seed)
            self._limits[record.number] = plan.samples
        else:
            # Confirmations have numbers too, but suggestions don't depend on them.
            params = self.study.suggest(max(self.history.trials, default=0) + 1, place=started + 1)
            record = self.history.start(params, source=self.study.searcher, seed=self._seed)
        self._live.add(record.number)
        self.study.begin(record)
        return record

    @property
    def is_over(self) -> bool:
        """True when nothing runs and nothing is left to run."""
        return not self._live and len(self.history.searched) >= self.history.num_trials and self._to_go_on() is None

    def _to_go_on(self) -> TrialRecord | None:
        """An interrupted trial, or a stopped one that is promoted."""
        if self._interrupted:
            return self._interrupted[0]
        if self._halving is not None:
            promoted = self._halving.promotable(self.history.trials, self._waits)
            if promoted is not None:
                return promoted
        return None if len(self.history.searched) < self.history.num_trials else self._last_chance()

    def _waits(self, record: TrialRecord) -> bool:
        has_state = "logits" in record.checkpoint_parts
        return record.status == "stopped" and has_state and record.number not in self._live

    def _last_chance(self) -> TrialRecord | None:
        """The best of the stopped trials that reached the highest rung, if too few have run to their full budget."""
        # As many at a time as are missing: whatever runs now may come to its full budget.
        completed = sum(record.status == "completed" for record in self.history.searched)
        if completed + len(self._live) >= self._min_completed:
            return None
        waiting = [record for record in self.history.searched if self._waits(record)]
        return min(waiting, key=lambda record: (-record.samples, record.last[METRIC]), default=None)

    def report(self, number: int, metrics: Mapping[str, Any]) -> bool:
        """See TrialSource."""
        record = self.history.trials[number]
        samples = metrics["num_samples_seen"]
        if samples in record.reports:  # the trial resumed from an earlier checkpoint, and gets the same answer as before
            _note_failure(self.history, record, metrics)
            self._forget_failed(record)
            return record.stopped and samples == record.samples
        stopped = self._stops(record, samples, metrics) and not metrics["done"]
        self.history.report(number, plain_metrics(metrics), stopped=stopped)
        self._forget_failed(record)
        if self._halving is not None and not (stopped or record.failure):
            self._halving.promote(record)
        return stopped

    def _stops(self, record: TrialRecord, samples: int, metrics: Mapping[str, Any]) -> bool:
        value, limit = metrics[METRIC], self._limits.get(record.number)
        stops = self.study.should_stop(record.number, samples, value) or (limit is not None and samples >= limit)
        if self._halving is not None and not metrics.get("failure"):
            stops |= self._halving.stops(record, samples, value)
        return stops

    def budget(self, record: TrialRecord) -> int | None:
        """See TrialSource."""
        if not self._restarts:
            return None
        limit = self._limits.get(record.number)
        if limit is not None and (record.stopped or record.samples < limit):
            return limit
        return None if self._halving is None else self._halving.budget(record)

    def put_back(self, number: int) -> None:
        """See TrialSource."""
        self._live.discard(number)
        self._interrupted.append(self.history.trials[number])

    def finish(self, number: int) -> None:
        """See TrialSource."""
        self._live.discard(number)
        self._forget_failed(self.history.trials[number])
        self.study.finish(self.history.trials[number])

    def _forget_failed(self, record: TrialRecord) -> None:
        if self._halving is not None and record.failure:
            self._halving.forget(record)

    @property
    def stopped_may_go_on(self) -> bool:
        """See TrialSource: except in a replay, one more trial or one more mask to evaluate may promote it."""
        return self._halving is not None or self._min_completed > 0


class PlannedTrials:
    """Planned trials beside the search, each run to its full budget: nothing is suggested or stopped early."""

    def __init__(self, history: History, planned: Sequence[Plan]):
        self.history = history
        done = [(record.source, record.seed) for record in history.trials.values()]
        self._planned = [plan for plan in planned if (plan.source, plan.seed) not in done]
        sources = {plan.source for plan in planned}
        self._waiting = [record for record in history.unfinished if record.source in sources]
        self._live: set[int] = set()

    @property
    def num_new(self) -> int:
        """Number of trials that are still to be started."""
        return len(self._planned)

    @property
    def num_left(self) -> int:
        """Number of trials that are still to be run or finished."""
        return len(self._waiting) + len(self._planned)

    def next_trial(self) -> TrialRecord | None:
        """See TrialSource."""
        if self._waiting:
            record = self.history.go_on(self._waiting.pop(0).number, promoted=False)
        elif self._planned:
            plan = self._planned.pop(0)
            record = self.history.start(dict(plan.params), source=plan.source, seed=plan.seed)
        else:
            return None
        self._live.add(record.number)
        return record

    @property
    def is_over(self) -> bool:
        """See TrialSource."""
        return not self._live and not self.num_left

    def report(self, number: int, metrics: Mapping[str, Any]) -> bool:
        """See TrialSource."""
        record = self.history.trials[number]
        if metrics["num_samples_seen"] in record.reports:
            _note_failure(self.history, record, metrics)
        else:
            self.history.report(number, plain_metrics(metrics), stopped=False)
        return False

    def budget(self, record: TrialRecord) -> int | None:
        """See TrialSource."""
        return None

    def put_back(self, number: int) -> None:
        """See TrialSource."""
        self._live.discard(number)
        self._waiting.append(self.history.trials[number])

    def finish(self, number: int) -> None:
        """See TrialSource."""
        self._live.discard(number)

    @property
    def stopped_may_go_on(self) -> bool:
        """See TrialSource: none of these trials stops, and the search decides about its own."""
        return True


def _note_failure(history: History, record: TrialRecord, metrics: Mapping[str, Any]) -> None:
    """Record the end of a trial that fails where it had already reported before it resumed from an earlier checkpoint."""
    failure = metrics.get("failure")
    if failure and not record.failure:
        history.error(record.number, failure)


# Reported metrics that the history keeps.
METRICS = (
    "num_samples_seen",
    "num_samples_trained",
    "fidelity",
    COMMON_FIDELITY,
    METRIC,
    SHARE,
    "val_error_now",
    "best_val_error",
    "initial_val_error",
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
    """The metrics that the history keeps, in JSON's types; an undefined value is None."""
    kept = {name: metrics[name] for name in METRICS if name in metrics}
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in kept.items()}
