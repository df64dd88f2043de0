"""Whole searches without Ray and networks: a controller drives a TrialSource on a simulated clock.

It makes the calls of `maskpro.tuning.adapters` in Tune's order.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from maskpro.fidelity import fidelity
from maskpro.schedule.early_stopping import SuccessiveHalving, make_pruner
from maskpro.schedule.event_file import drop_torn_line
from maskpro.schedule.folder import HISTORY_FILE, STUDY_FILE
from maskpro.schedule.history import METRIC, SHARE, History
from maskpro.schedule.searcher import WINDOW, SearchStudy
from maskpro.schedule.state import Plan, SearchState, TrialSource

_INITIAL_ERROR = 1.0
_LOSSES = ("val_loss", "val_loss_now", "best_val_loss", "initial_val_loss", "recovery", "loss_improvement")
_SAVING = 0.01  # simulated seconds from a report to its checkpoint: reports of other trials come between

# A default space; below are default learning curves and seconds a report.
DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(0.05, 5.0, log=True),
    "logits": FloatDistribution(1.0, 10.0),
    "batch_size": CategoricalDistribution([16, 32, 64, 128]),
}


def learning_curve(params: Mapping[str, Any], samples: int, budget: int = 900) -> float:
    """A falling error, best at lr 1; curves of different batch sizes cross. Fails above lr 4, dies at the worst logits."""
    if params["lr"] > 4 and samples > 100:
        return math.nan
    if params["logits"] > 9.5 and samples > 200:
        raise DiedError("the worker died: out of memory")
    floor = 0.1 + 0.3 * math.log10(params["lr"]) ** 2 + 0.02 * abs(params["logits"] - 4) - 0.0005 * params["batch_size"]
    return float(floor + (1 - floor) * math.exp(-samples / (40 + 3 * params["batch_size"])))


def sparse_share(params: Mapping[str, Any]) -> float:
    """Share of the multiply-adds in layers with a mask, where a trial keeps some of them dense."""
    return float(1 - params["num_dense"] / 10)


def pace(params: Mapping[str, Any]) -> float:
    """Seconds a report, between half a second and two seconds."""
    return float(0.5 + params["logits"] / 10 + 0.1 * params["lr"])


class KilledError(Exception):
    """The driver of the search was killed."""


class DiedError(Exception):
    """A trial's process died for good; raised by a curve."""


class MortalHistory(History):
    """A history that is killed after `lines` lines; with `torn` in the middle of the next one."""

    def __init__(self, path: Path, *, lines: float = math.inf, torn: bool = False):
        super().__init__(path)
        self._lines, self._torn, self._file = lines, torn, path

    def _append(self, **event: Any) -> None:
        if self._lines <= 0:
            if self._torn:
                with self._file.open("ab") as file:
                    file.write(b'{"event": "report", "trial": 1, "met')
            raise KilledError
        self._lines -= 1
        super()._append(**event)


class Reply(NamedTuple):
    """The answer to a trial's report."""

    number: int
    samples: int
    ends: bool


@dataclass(frozen=True, kw_only=True)
class SimulatedSearch:
    """A search, and the reports that its trials would make.

    Attributes:
        curve: error as a function of (params, samples, budget of the run); where it is not finite the trial fails. It may
            raise DiedError.
        pace: simulated seconds of one report of a trial with such params.
        unit: samples between two reports.
        journal: whether to write the Optuna study beside the history.
        objectives: of the search; the share that stays sparse is `sparse_share` of a trial's parameters.
        min_sparse_share: of the trial that is promoted.
        window: number of ended trials that a suggestion comes from.
    """

    distributions: Mapping[str, BaseDistribution] = field(default_factory=lambda: DISTRIBUTIONS)
    curve: Callable[[Mapping[str, Any], int, int], float] = learning_curve
    pace: Callable[[Mapping[str, Any]], float] = pace
    num_trials: int = 15
    planned: Sequence[Plan] = ()
    warm_start: Sequence[tuple[Any, ...]] = ()
    searcher: str = "optuna"
    scheduler: str = "asha"
    seed: int = 0
    unit: int = 100
    max_samples: int = 900
    reduction_factor: int = 3
    slots: int = 1
    min_completed: int = 1
    restarts: bool = False
    journal: bool = False
    objectives: Sequence[str] = (METRIC,)
    min_sparse_share: float | None = None
    window: int = WINDOW

    def open(self, folder: Path, *, extend: int = 0, lines: float = math.inf, torn: bool = False) -> SearchState:
        """A session of the search whose history is in `folder`; it is killed after writing `lines` lines."""
        path = folder / HISTORY_FILE
        is_new = not path.exists()
        if not is_new:
            drop_torn_line(path)
        history = MortalHistory(path, lines=lines, torn=torn)
        num_trials = (history.num_trials or self.num_trials) + extend
        history.session(num_trials, time="now", min_sparse_share=self.min_sparse_share)
        for told in self.warm_start if is_new else ():
            history.add_warm_start(*told)
        study = self.study()
        state = SearchState(
            history,
            study,
            planned=self.planned,
            seed=self.seed,
            halving=self.halving() if self.scheduler == "asha" else None,
            min_completed=self.min_completed,
            restarts=self.restarts,
        )
        if self.journal:
            study.write(folder / STUDY_FILE)
        return state

    @property
    def rungs(self) -> tuple[int, ...]:
        """Samples at which trials are compared: the rungs, and the full budget."""
        return self.halving().ends if self.scheduler == "asha" else ()

    def halving(self) -> SuccessiveHalving:
        """New early stopping with the search's settings."""
        return SuccessiveHalving(
            first_rung=self.unit,
            max_samples=self.max_samples,
            reduction_factor=self.reduction_factor,
            restarts=self.restarts,
        )

    def study(self) -> SearchStudy:
        """A new study with the search's settings."""
        pruner = make_pruner(self.scheduler, self.unit, self.reduction_factor)
        return SearchStudy(
            self.searcher,
            distributions=self.distributions,
            pruner=pruner,
            seed=self.seed,
            num_seed_points=len(self.planned),
            rungs=self.rungs,
            objectives=self.objectives,
            window=self.window,
        )

    def run(self, source: TrialSource, replies: list[Reply] | None = None) -> list[Reply]:
        """Run all trials of the source; the replies to all reports are added to `replies` in order as they come."""
        replies = [] if replies is None else replies
        history = source.history
        clock: list[tuple[float, int, str, int]] = []  # (time, trial, what happens, at how many samples)
        budgets: dict[int, int] = {}  # trial's number to the budget of its current run
        rungs = self.rungs[:-1] if self.restarts else ()

        def fill(now: float) -> None:
            """Start as many trials as there is room for; Tune too asks again after every event."""
            while len(clock) < self.slots:
                record = source.next_trial()
                if record is None:
                    return
                budget = source.budget(record)
                budgets[record.number] = budget or self.max_samples
                begins = record.promoted and budget is not None
                train(now, record.number, 0 if begins else max(record.checkpoint_samples, 0))

        def train(now: float, number: int, samples: int) -> None:
            until = min((samples // self.unit + 1) * self.unit, self.max_samples)
            heapq.heappush(clock, (now + self.pace(history.trials[number].params), number, "report", until))

        def remove_unneeded(number: int) -> None:
            record = history.trials[number]
            needed = record.needed_parts(may_go_on=source.stopped_may_go_on)
            if record.checkpoint and len(needed) < len(record.checkpoint_parts):
                history.removed(number, needed)

        for number in history.trials:
            remove_unneeded(number)
        fill(0.0)
        while clock:
            now, number, what, samples = heapq.heappop(clock)
            if what == "report":
                try:
                    error = self.curve(history.trials[number].params, samples, budgets[number])
                    earlier = sum(rung for rung in rungs if rung < budgets[number])  # its runs up to these
                    metrics = self.metrics(error, samples, earlier)
                    if SHARE in self.objectives:
                        metrics[SHARE] = sparse_share(history.trials[number].params)
                except DiedError as error:
                    history.error(number, str(error))
                    source.finish(number)
                    remove_unneeded(number)
                    fill(now)
                    continue
                # Tune asks the scheduler unless the trial ends by itself, and calls the callback in either case.
                ends = metrics["done"] or source.report(number, metrics)
                if not history.trials[number].stopped:
                    source.report(number, metrics)
                replies.append(Reply(number, samples, ends))
                heapq.heappush(clock, (now + _SAVING, number, "end" if ends else "go on", samples))
            else:
                history.checkpoint(number, f"{history.trials[number].name}/checkpoint_{samples}", samples)
                remove_unneeded(number)
                if what == "go on":
                    train(now, number, samples)
                else:
                    source.finish(number)
                    fill(now)
        assert source.is_over
        return replies

    def metrics(self, error: float, samples: int, earlier: int = 0) -> dict[str, Any]:
        """The report of a trial with this error, whose earlier runs had `earlier` samples."""
        seen = {"num_samples_seen": samples, "num_samples_trained": earlier + samples}
        if not math.isfinite(error):
            failed = {METRIC: 10 * _INITIAL_ERROR, "failure": f"training loss is not finite after {samples} samples"}
            return {**seen, **failed, "done": True}
        return {
            **seen,
            "fidelity": fidelity(_INITIAL_ERROR, error),
            METRIC: error,
            "val_error_now": error,
            "best_val_error": min(error, _INITIAL_ERROR),
            "initial_val_error": _INITIAL_ERROR,
            **dict.fromkeys(_LOSSES, error),
            "train_loss": math.nan,
            "changed_share": 0.01,
            "seconds": samples / self.unit,
            "failure": "",
            "done": samples == self.max_samples,
        }
