"""When a trial stops early, and which stopped one goes on after all."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from typing import TypeAlias

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from maskpro.errors import MaskproError
from maskpro.schedule.history import METRIC, TrialRecord
from maskpro.schedule.rungs import rungs


class SuccessiveHalving:
    """ASHA (Li et al. 2020, algorithm 2): a trial stops at a rung, and goes on once it is among the rung's best.

    With n values in a rung, the best `n // reduction_factor` go on to the next: none before there are `reduction_factor`
    values, and a trial that was stopped may still go on when later, worse ones have filled the rung. Neither Ray's nor
    Optuna's version does this: they stop for good, and let whoever comes first to a rung pass unjudged. Departures from the
    paper:

    - seed points do not stop at the first rung, where a large batch has made few steps and says little;
    - of equal values the earlier trial's counts as better: trials that change nothing all tie;
    - failed trials count in no rung.

    A rung holds what trials reported exactly there, so a late report never fills a lower one.

    With `restarts` a rung is the end of a run of its own. Every trial stops there, at the end of its schedules of step size
    and temperature. A promoted trial is trained anew, with the next rung as its budget. The reason: a run that is cut off
    in the middle of its schedules tells little of how it would end. Seed points then stop at the first rung like others.

    Args:
        first_rung: samples at the lowest rung; the next ones lie at `reduction_factor` times the one before.
        max_samples: where a trial ends by itself.
        restarts: whether a promoted trial is trained anew.
    """

    def __init__(self, *, first_rung: int, max_samples: int, reduction_factor: int, restarts: bool = False):
        self._reduction_factor = reduction_factor
        self._restarts = restarts
        self._max_samples = max_samples
        places = rungs(first_rung=first_rung, max_samples=max_samples, reduction_factor=reduction_factor)
        self._rungs: dict[int, list[tuple[float, int]]] = {rung: [] for rung in places}

    @property
    def rungs(self) -> tuple[int, ...]:
        """Samples at each rung."""
        return tuple(self._rungs)

    def budget(self, record: TrialRecord) -> int:
        """Samples at which the run that a trial is in, or begins next, has its budget used up."""
        if not self._restarts:
            return self._max_samples
        if record.stopped:  # it stopped there, but its checkpoint was lost
            return record.samples
        return next((rung for rung in self._rungs if rung > record.samples), self._max_samples)

    def replay(self, records: Iterable[TrialRecord]) -> None:
        """Take in what trials have reported."""
        for record in records:
            for samples, metrics in record.reports.items():
                if not metrics.get("failure"):
                    self._add(record.number, samples, metrics[METRIC])

    def stops(self, record: TrialRecord, samples: int, value: float) -> bool:
        """Take in a report of a trial; whether it stops there."""
        self._add(record.number, samples, value)
        if samples not in self._rungs:
            return False
        if self._restarts:
            return True
        if record.seed_point is not None and samples == self.rungs[0]:
            return False
        return record.number not in self._best(samples, lambda number: False)

    def promotable(self, trials: dict[int, TrialRecord], is_waiting: Callable[[TrialRecord], bool]) -> TrialRecord | None:
        """The stopped trial that goes on next: of the highest rung that has one, the best."""
        for samples in reversed(self._rungs):
            for number in self._best(samples, lambda number: bool(trials[number].failure)):
                if trials[number].samples == samples and is_waiting(trials[number]):
                    return trials[number]
        return None

    def _add(self, number: int, samples: int, value: float) -> None:
        if samples in self._rungs:
            insort(self._rungs[samples], (value, number))

    def _best(self, samples: int, has_failed: Callable[[int], bool]) -> list[int]:
        numbers = [number for _, number in self._rungs[samples] if not has_failed(number)]
        return numbers[: len(numbers) // self._reduction_factor]


# What becomes of a promoted trial: it resumes from its checkpoint, or is trained anew with the next rung as its budget.
PROMOTIONS = ("resume", "restart")

# Each makes a pruner of (report_samples, reduction_factor); for "asha" there is successive halving besides.
SCHEDULERS: dict[str, Callable[[int, int], BasePruner]] = {
    "asha": lambda report_samples, reduction_factor: NopPruner(),
    "median": lambda report_samples, reduction_factor: MedianPruner(
        n_startup_trials=reduction_factor, n_warmup_steps=report_samples + 1, n_min_trials=reduction_factor
    ),
    "none": lambda report_samples, reduction_factor: NopPruner(),
}
# A name, or in a space file an Optuna pruner.
Scheduler: TypeAlias = str | BasePruner
# Pruners that keep in a trial which of its rungs are done; a study made anew from the history has not got that.
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
    """A scheduler as records name it."""
    return scheduler if isinstance(scheduler, str) else type(scheduler).__name__


def make_pruner(scheduler: Scheduler, report_samples: int, reduction_factor: int) -> BasePruner:
    """What a scheduler has Optuna stop for good.

    Raises:
        MaskproError: no such scheduler.
    """
    check_scheduler(scheduler)
    return SCHEDULERS[scheduler](report_samples, reduction_factor) if isinstance(scheduler, str) else scheduler
