"""Suggests parameters and judges reports by an Optuna study, which is always a function of the history."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from maskpro.errors import MaskproError
from maskpro.schedule.compared_trials import ComparedTrials
from maskpro.schedule.folder import SPACE_FILE
from maskpro.schedule.history import DIRECTIONS, METRIC, History, TrialRecord
from maskpro.schedule.journal import JournalExport

# Random trials before TPE begins, if a space has no seed points and there is no warm start.
_STARTUP_TRIALS = 5
# Ended trials that a suggestion comes from, where a searcher looks at any: the time of one grows with their number.
WINDOW = 400


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a suggestion in its search.

    Attributes:
        search_seed: seed of the whole search.
        number: number of the trial among the search's trials, from 1.
        num_seed_points: number of seed points, which are not suggested.
        startup_trials: random trials before a model of the reports is fitted.
        distributions: distributions of the searched parameters.
    """

    search_seed: int
    number: int
    num_seed_points: int
    startup_trials: int
    distributions: Mapping[str, BaseDistribution]

    @property
    def seed(self) -> int:
        """Seed of this suggestion alone."""
        return int(np.random.SeedSequence([self.search_seed, self.number]).generate_state(1)[0])


class _Sobol(QMCSampler):
    """Optuna's quasi-random sequence, with each suggestion at its own place in it.

    Optuna counts the places in the study, but a study is remade in every session.
    """

    def __init__(self, place: Place):
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):  # its interface may change
            super().__init__(qmc_type="sobol", scramble=True, seed=place.search_seed)
        self._place = place

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters of the search, even before a trial has ended."""
        return dict(self._place.distributions)

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._place.number - 1 - self._place.num_seed_points


def _tpe(place: Place) -> BaseSampler:
    return TPESampler(seed=place.seed, n_startup_trials=place.startup_trials, multivariate=True, constant_liar=True)


def _gp(place: Place) -> BaseSampler:
    return GPSampler(seed=place.seed, n_startup_trials=place.startup_trials)


# Samplers that are a function of the trials alone. Optuna's CMA-ES keeps a state of its own, which is not in the history.
SEARCHERS: dict[str, Callable[[Place], BaseSampler]] = {
    "optuna": _tpe,  # Optuna's default
    "tpe": _tpe,
    "gp": _gp,
    "qmc": _Sobol,
    "random": lambda place: RandomSampler(seed=place.seed),
}
# Searchers that look at no trial.
_BLIND = ("qmc", "random")
# A function in a space file that makes an Optuna sampler from a seed.
SamplerFactory = Callable[[int], BaseSampler]
Searcher = str | SamplerFactory


def check_searcher(searcher: object) -> None:
    """Raise MaskproError unless it is a known name, or a function of a seed that returns an Optuna sampler."""
    if isinstance(searcher, str) and searcher in SEARCHERS:
        return
    allowed = f"{', '.join(SEARCHERS)}, or in a space file a function of a seed that returns an Optuna sampler"
    if isinstance(searcher, BaseSampler):
        raise MaskproError(
            f"searcher is a {type(searcher).__name__}, whose random numbers no resumed search could repeat; allowed: "
            f"{allowed}"
        )
    if not callable(searcher):
        raise MaskproError(f"searcher is {searcher!r}; allowed: {allowed}")
    made = searcher(0)
    if not isinstance(made, BaseSampler) or isinstance(made, CmaEsSampler):
        why = ", which keeps a state that the history can't tell" if isinstance(made, CmaEsSampler) else ""
        raise MaskproError(f"searcher returns a {type(made).__name__}{why}; allowed: {allowed}")


def searcher_name(searcher: Searcher) -> str:
    """A searcher's name in records."""
    return searcher if isinstance(searcher, str) else type(searcher(0)).__name__


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a parameter can have the value."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):  # not one of the choices, or of another type
        return False


class SearchStudy:
    """Suggests parameters and judges reports.

    A stopped trial is added to Optuna's study as complete, with its last value and its samples seen. The sampler of the
    k-th trial is seeded by (seed, k) alone, so a resumed search suggests what it would have suggested without the
    interruption.

    `ComparedTrials` says which trials suggestions come from.

    Args:
        searcher: a searcher that `check_searcher` allows.
        distributions: distributions of the searched parameters.
        num_seed_points: number of seed points; they replace random start-up trials.
        rungs: samples at which trials are compared; empty: trials don't stop at rungs, and last values are compared.
        objectives: metrics of `DIRECTIONS` that are searched for. The pruner judges one alone; of two it is not asked.
        window: number of ended trials that a suggestion comes from.

    Raises:
        MaskproError: no such searcher.
    """

    def __init__(
        self,
        searcher: Searcher,
        *,
        distributions: Mapping[str, BaseDistribution],
        pruner: BasePruner,
        seed: int,
        num_seed_points: int = 0,
        rungs: Sequence[int] = (),
        objectives: Sequence[str] = (METRIC,),
        window: int = WINDOW,
    ):
        check_searcher(searcher)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.searcher = searcher_name(searcher)
        self._make_sampler = searcher
        self._distributions = dict(distributions)
        self._seed = seed
        self._num_seed_points = num_seed_points
        self._startup_trials = num_seed_points or _STARTUP_TRIALS
        self._rungs = rungs
        self._objectives = objectives
        self._directions = [DIRECTIONS[name] for name in objectives]
        self._study = optuna.create_study(directions=self._directions, pruner=pruner)
        self._compared = ComparedTrials(
            self._study, rungs=rungs, num_parameters=len(distributions), directions=self._directions, window=window
        )
        self._running: dict[int, Trial] = {}
        self._told: dict[int, int] = {}  # position in the study of each trial that has stopped or ended, by its number
        self._journal: JournalExport | None = None

    def replay(self, history: History) -> None:
        """Take in all events of the history, as if they had happened now."""
        for told in history.warm_start:
            attributes = {"source": told["source"]}
            values = self._values({METRIC: told["value"], **told})
            reports = dict(told["reports"]) if self._rungs else {}  # a pruner judges by this search's own trials
            self._add(self._frozen(TrialState.COMPLETE, told["params"], values, attributes, reports))
        for record in history.searched:
            if record.status == "unfinished" and record.stopped_at is None:
                self.begin(record)
                for samples, metrics in record.reports.items() if self._is_judged else ():
                    self._running[record.number].report(metrics[METRIC], samples)
            else:
                self._told[record.number] = self._add(self._ended(record))

    def _add(self, trial: FrozenTrial) -> int:
        """Add an ended trial; its place in the study."""
        place = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(trial)
        self._compared.add(trial, place)
        return place

    def suggest(self, number: int, *, place: int) -> dict[str, Any]:
        """Parameters for trial `number`, the `place`-th of the search; the study then has it as running."""
        at = Place(
            search_seed=self._seed,
            number=place,
            num_seed_points=self._num_seed_points,
            startup_trials=self._startup_trials,
            distributions=self._distributions,
        )
        make = self._make_sampler
        self._study.sampler = SEARCHERS[make](at) if isinstance(make, str) else make(at.seed)
        with nullcontext() if self.searcher in _BLIND else self._compared.in_study():
            trial = self._study.ask(self._distributions)
        self._running[number] = trial
        return dict(trial.params)

    def begin(self, record: TrialRecord) -> None:
        """A trial with given parameters starts: a seed point, a replayed trial, or a resumed or promoted one."""
        if record.number not in self._running:
            # Every parameter is given, so TPE must neither fit its model nor note parameters of its own.
            self._study.sampler = RandomSampler()
            self._study.enqueue_trial(record.params)
            self._running[record.number] = self._study.ask(self._distributions)
        for name, value in _attributes(record).items():
            self._running[record.number].set_user_attr(name, value)

    def should_stop(self, number: int, samples: int, value: float) -> bool:
        """Take in a report; True if the pruner ends the trial. The pruner is not asked about promoted trials."""
        if number not in self._running or not self._is_judged:
            return False
        trial = self._running[number]
        trial.report(value, samples)
        return bool(trial.should_prune())

    def finish(self, record: TrialRecord) -> None:
        """A trial has stopped or ended, in whatever way."""
        ended = self._ended(record)
        if record.number in self._told:
            self._correct(record, ended)
            return
        trial = self._running.pop(record.number)
        for name, value in ended.user_attrs.items():
            trial.set_user_attr(name, value)
        self._study.tell(trial, ended.values, state=ended.state)
        self._told[record.number] = trial.number
        self._compared.add(ended, trial.number)
        if self._journal is not None:
            self._journal.add(ended)

    def _correct(self, record: TrialRecord, ended: FrozenTrial) -> None:
        """Correct a trial that was promoted after it was added; Optuna's own interface can't change its value."""
        place = self._told[record.number]
        told = self._study.get_trials(deepcopy=False)[place]
        self._compared.remove(told, place)
        told.state, told.values = ended.state, ended.values
        told.intermediate_values = ended.intermediate_values
        told.user_attrs = ended.user_attrs
        self._compared.add(told, place)

    def write(self, path: Path) -> None:
        """Write the stopped and ended trials as a journal of Optuna, and add further ones as they come."""
        told = self._study.get_trials(deepcopy=False)
        self._journal = JournalExport(path, [trial for trial in told if trial.state.is_finished()], self._directions)

    def _ended(self, record: TrialRecord) -> FrozenTrial:
        """The trial as it ended, or as it last stopped while it runs again."""
        end = record.samples if record.status != "unfinished" else record.stopped_at or 0
        values = {samples: metrics[METRIC] for samples, metrics in record.reports.items() if samples <= end}
        state = TrialState.FAIL if record.error else TrialState.COMPLETE
        return self._frozen(state, record.params, self._values(record.reports.get(end, {})), _attributes(record), values)

    @property
    def _is_judged(self) -> bool:
        """Whether reports are told to Optuna, which takes none where there are several objectives."""
        return len(self._objectives) == 1

    def _values(self, metrics: Mapping[str, Any]) -> list[float]:
        """What a report says of the objectives; [] of no report."""
        return [metrics[name] for name in self._objectives] if metrics else []

    def _frozen(
        self,
        state: TrialState,
        params: Mapping[str, Any],
        values: list[float],
        attributes: dict[str, Any],
        intermediate_values: dict[int, float],
    ) -> FrozenTrial:
        try:
            return create_trial(
                state=state,
                params=dict(params),
                distributions=self._distributions,
                values=values if state == TrialState.COMPLETE else None,
                user_attrs=attributes,
                intermediate_values=intermediate_values,
            )
        except ValueError as error:
            raise MaskproError(
                f"parameters {dict(params)} of the history do not fit the search space ({error}); allowed: {SPACE_FILE} of "
                "the experiment as it was when it began"
            ) from error


def _attributes(record: TrialRecord) -> dict[str, Any]:
    """A trial's attributes in the study, beside its parameters and values."""
    attributes: dict[str, Any] = {"trial": record.number, "source": record.source}
    if record.seed_point is not None:
        attributes["seed_point"] = record.seed_point
    if record.status != "unfinished":
        attributes |= {"status": record.status, "num_samples_seen": record.samples, "fidelity": record.last.get("fidelity")}
    elif record.stopped_at is not None:
        stop = record.reports[record.stopped_at]
        attributes |= {"status": "stopped", "num_samples_seen": record.stopped_at, "fidelity": stop.get("fidelity")}
    return attributes
