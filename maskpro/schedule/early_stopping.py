"""When a trial stops early, and which stopped trial is promoted."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from maskpro.errors import MaskproError
from maskpro.schedule.history import METRIC, TrialRecord
from maskpro.schedule.rungs import rungs


class SuccessiveHalving:
    """ASHA (Li et al. 2020, algorithm 2): a trial stops at a rung, and is promoted once it is among the rung's best.

    With n values in a rung, the best `n // reduction_factor` are promoted to the next. So none is before there are
    `reduction_factor` values, and a stopped trial may be promoted once later, worse trials have filled the rung. Ray's and
    Optuna's versions differ: they stop trials for good, and the first trial at a rung passes unjudged. Departures from the
    paper:

    - seed points do not stop at the first rung, where a large batch has made few steps and says little;
    - of equal values the earlier trial's counts as better, as trials that change nothing all tie;
    - failed trials count in no rung.

    A rung holds the values that trials reported exactly there, so a later report never fills a lower rung.

    With `restarts` a rung is the end of a run of its own. Every trial stops there, at the end of its schedules of step size
    and temperature. A promoted trial is trained anew, with the next rung as its budget. The reason: a run that is cut off
    in the middle of its schedules tells little of how it would end. Seed points then stop at the first rung like others.
    And of n trials in a rung no more than `n // reduction_factor` are ever promoted. ASHA promotes each trial that is among
    the best when it comes: most of them, where each suggestion is better than the one before. With restarts that costs a
    whole run each time.

    Args:
        first_rung: samples at the lowest rung; each further rung lies at `reduction_factor` times the one before.
        max_samples: samples at which a trial ends by itself.
        restarts: whether a promoted trial is trained anew.
    """

    def __init__(self, *, first_rung: int, max_samples: int, reduction_factor: int, restarts: bool = False):
        self._reduction_factor = reduction_factor
        self._restarts = restarts
        self._max_samples = max_samples
        places = rungs(first_rung=first_rung, max_samples=max_samples, reduction_factor=reduction_factor)
        # All in a rung, best first; those of them that may still be promoted from there; and those that have been.
        self._rungs: dict[int, list[tuple[float, int]]] = {rung: [] for rung in places}
        self._open: dict[int, list[tuple[float, int]]] = {rung: [] for rung in places}
        self._promoted: dict[int, set[int]] = {rung: set() for rung in places}

    @property
    def rungs(self) -> tuple[int, ...]:
        """Samples at each rung."""
        return tuple(self._rungs)

    @property
    def ends(self) -> tuple[int, ...]:
        """Samples at each rung, and of the full budget."""
        return (*self._rungs, self._max_samples)

    def budget(self, record: TrialRecord) -> int:
        """Budget, in samples, of the run that a trial is in or begins next."""
        if not self._restarts:
            return self._max_samples
        if record.stopped:  # it stopped at this rung, but its checkpoint was lost
            return record.samples
        return next((rung for rung in self._rungs if rung > record.samples), self._max_samples)

    def replay(self, records: Iterable[TrialRecord]) -> None:
        """Take in all reports of the trials."""
        for record in records:
            for samples, metrics in record.reports.items():
                if not (metrics.get("failure") or record.failure):
                    self._add(record.number, samples, metrics[METRIC])
                    if samples in self._rungs and (record.samples > samples or not record.stopped):
                        self._promoted[samples].add(record.number)

    def stops(self, record: TrialRecord, samples: int, value: float) -> bool:
        """Take in a report of a trial; True if the trial stops there."""
        self._add(record.number, samples, value)
        if samples not in self._rungs:
            return False
        if self._restarts:
            return True
        if record.seed_point is not None and samples == self.rungs[0]:
            return False
        return (value, record.number) > self._last_of_the_best(samples)

    def promotable(
        self, trials: Mapping[int, TrialRecord], is_waiting: Callable[[TrialRecord], bool]
    ) -> TrialRecord | None:
        """The stopped trial to promote next: the best one of the highest rung that has any."""
        for samples, waiting in reversed(self._open.items()):
            if self._restarts and len(self._promoted[samples]) >= len(self._rungs[samples]) // self._reduction_factor:
                continue
            last, gone = self._last_of_the_best(samples), []
            found = None
            for entry in waiting:
                record = trials[entry[1]]
                if entry > last:
                    break
                if record.samples > samples:
                    gone.append(entry)
                elif is_waiting(record):
                    found = record
                    break
            for entry in gone:
                waiting.remove(entry)
            if found is not None:
                return found
        return None

    def promote(self, record: TrialRecord) -> None:
        """A trial goes on from the rung where it made its last report."""
        if record.samples in self._rungs:
            self._promoted[record.samples].add(record.number)

    def forget(self, record: TrialRecord) -> None:
        """A trial has failed, and counts no more."""
        for samples, entries in self._rungs.items():
            if samples in record.reports:
                entry = (record.reports[samples][METRIC], record.number)
                for places in (entries, self._open[samples]):
                    if entry in places:
                        places.remove(entry)
            self._promoted[samples].discard(record.number)

    def _add(self, number: int, samples: int, value: float) -> None:
        if samples in self._rungs:
            insort(self._rungs[samples], (value, number))
            insort(self._open[samples], (value, number))

    def _last_of_the_best(self, samples: int) -> tuple[float, int]:
        """The last of a rung's best, one of `reduction_factor`; below all others where there are too few."""
        count = len(self._rungs[samples]) // self._reduction_factor
        return self._rungs[samples][count - 1] if count else (-math.inf, 0)


# How a promoted trial continues: it resumes from its checkpoint, or is trained anew with the next rung as its budget.
PROMOTIONS = ("resume", "restart")

# Makers of pruners from (report_samples, reduction_factor); "asha" adds successive halving.
SCHEDULERS: dict[str, Callable[[int, int], BasePruner]] = {
    "asha": lambda report_samples, reduction_factor: NopPruner(),
    "median": lambda report_samples, reduction_factor: MedianPruner(
        n_startup_trials=reduction_factor, n_warmup_steps=report_samples + 1, n_min_trials=reduction_factor
    ),
    "none": lambda report_samples, reduction_factor: NopPruner(),
}
# A name, or an Optuna pruner in a space file.
Scheduler: TypeAlias = str | BasePruner
# Pruners that store a trial's finished rungs in the trial; a study remade from the history lacks them.
_WITH_A_STATE = (SuccessiveHalvingPruner, HyperbandPruner)


def check_scheduler(scheduler: object) -> None:
    """Raise MaskproError unless it is a known name, or an Optuna pruner that judges by the reports alone."""
    allowed = f"{', '.join(SCHEDULERS)}, or in a space file an Optuna pruner without a state of its own"
    if isinstance(scheduler, _WITH_A_STATE):
        raise MaskproError(
            f"scheduler is a {type(scheduler).__name__}, whose rungs the history can't tell; allowed: {allowed} (asha is "
            "successive halving)"
        )
    is_known = isinstance(scheduler, str) and scheduler in SCHEDULERS
    if not is_known and not isinstance(scheduler, BasePruner):
        shown = repr(scheduler) if isinstance(scheduler, str | int | float | None) else f"a {type(scheduler).__name__}"
        raise MaskproError(f"scheduler is {shown}; allowed: {allowed}")


def scheduler_name(scheduler: Scheduler) -> str:
    """A scheduler's name in records."""
    return scheduler if isinstance(scheduler, str) else type(scheduler).__name__


def make_pruner(scheduler: Scheduler, report_samples: int, reduction_factor: int) -> BasePruner:
    """The pruner by which a scheduler lets Optuna stop trials for good.

    Raises:
        MaskproError: no such scheduler.
    """
    check_scheduler(scheduler)
    return SCHEDULERS[scheduler](report_samples, reduction_factor) if isinstance(scheduler, str) else scheduler
