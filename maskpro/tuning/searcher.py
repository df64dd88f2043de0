"""What a search tries next, and what it makes of the reports: an Optuna study that is always a function of the history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from maskpro.errors import MaskproError
from maskpro.files import atomic_path
from maskpro.tuning.history import METRIC, History, TrialRecord

STUDY_FILE = "optuna_journal.log"
# Optuna's lock of a journal is a symbolic link with this suffix.
_LOCK_SUFFIX = ".lock"

# Random trials before TPE begins, where a space brings no seed points and nothing to start from.
_STARTUP_TRIALS = 5


def _tpe(seed: int, startup_trials: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=startup_trials, multivariate=True, constant_liar=True)


def _random(seed: int, startup_trials: int) -> BaseSampler:
    return RandomSampler(seed=seed)


SEARCHERS: dict[str, Callable[[int, int], BaseSampler]] = {"optuna": _tpe, "random": _random}


class SearchStudy:
    """Suggests parameters and judges reports.

    A stopped trial is told to Optuna as complete with its last value, and its samples seen beside it: in simulations that
    is as good as telling it as pruned, and much better than as failed. The sampler of the k-th trial is seeded by (seed, k)
    alone, so a search that goes on suggests what it would have suggested without the interruption.

    Args:
        searcher: a name in SEARCHERS.
        distributions: of the searched parameters.
        num_seed_points: they stand in for random start-up trials.

    Raises:
        MaskproError: no such searcher.
    """

    def __init__(
        self,
        searcher: str,
        *,
        distributions: Mapping[str, BaseDistribution],
        pruner: BasePruner,
        seed: int,
        num_seed_points: int = 0,
    ):
        if searcher not in SEARCHERS:
            raise MaskproError(f"searcher is {searcher!r}; allowed: {', '.join(SEARCHERS)}")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.searcher = searcher
        self._distributions = dict(distributions)
        self._seed = seed
        self._startup_trials = num_seed_points or _STARTUP_TRIALS
        self._study = optuna.create_study(direction="minimize", pruner=pruner)
        self._running: dict[int, Trial] = {}
        self._told: dict[int, int] = {}  # position in the study of each trial that has stopped or ended, by its number
        self._on_disk: optuna.Study | None = None

    def replay(self, history: History) -> None:
        """Take in all that has happened, as if it had happened now."""
        for told in history.warm_start:
            attributes = {"source": told["source"]}
            self._study.add_trial(self._frozen(TrialState.COMPLETE, told["params"], told["value"], attributes, {}))
        for record in history.searched:
            if record.status == "unfinished" and record.stopped_at is None:
                self.begin(record)
                for samples, metrics in record.reports.items():
                    self._running[record.number].report(metrics[METRIC], samples)
            else:
                self._told[record.number] = len(self._study.get_trials(deepcopy=False))
                self._study.add_trial(self._ended(record))

    def suggest(self, number: int, *, place: int) -> dict[str, Any]:
        """Parameters for trial `number`, the `place`-th of the search, which is then running."""
        seed = int(np.random.SeedSequence([self._seed, place]).generate_state(1)[0])
        self._study.sampler = SEARCHERS[self.searcher](seed, self._startup_trials)
        trial = self._study.ask(self._distributions)
        self._running[number] = trial
        return dict(trial.params)

    def begin(self, record: TrialRecord) -> None:
        """A trial starts whose parameters are given: a seed point, a replayed trial, or one that goes on."""
        if record.number not in self._running:
            # Every parameter is given: TPE would fit its model, and note parameters of its own, for nothing.
            self._study.sampler = RandomSampler()
            self._study.enqueue_trial(record.params)
            self._running[record.number] = self._study.ask(self._distributions)
        for name, value in _attributes(record).items():
            self._running[record.number].set_user_attr(name, value)

    def should_stop(self, number: int, samples: int, value: float) -> bool:
        """Take in a report; whether the pruner ends the trial on it. One that went on after a stop is not asked about."""
        if number not in self._running:
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
        self._study.tell(trial, ended.value, state=ended.state)
        self._told[record.number] = trial.number
        if self._on_disk is not None:
            self._on_disk.add_trial(ended)

    def _correct(self, record: TrialRecord, ended: FrozenTrial) -> None:
        """A trial went on after it was told, and has a better value now: Optuna has no way to tell one twice."""
        if ended.state == TrialState.COMPLETE:
            told = self._study.get_trials(deepcopy=False)[self._told[record.number]]
            told.value = ended.value
            told.intermediate_values = ended.intermediate_values
            told.user_attrs = ended.user_attrs

    def write(self, path: Path) -> None:
        """Write the study anew as an Optuna journal, and keep adding the trials that stop or end.

        It is for Optuna's own tools; nothing here reads it. No running trial is in it, so a kill leaves none behind. One
        that goes on after a stop has its later values in it when it is next written anew.
        """
        with atomic_path(path) as temporary:
            study = _open_journal(temporary)
            study.add_trials([trial for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()])
        # Left by a kill, it would be waited for; whoever writes an experiment holds its own lock.
        path.with_name(path.name + _LOCK_SUFFIX).unlink(missing_ok=True)
        self._on_disk = _open_journal(path)

    def _ended(self, record: TrialRecord) -> FrozenTrial:
        """The trial as it ended or, while it goes on, as it last stopped."""
        end = record.samples if record.status != "unfinished" else record.stopped_at or 0
        values = {samples: metrics[METRIC] for samples, metrics in record.reports.items() if samples <= end}
        state = TrialState.FAIL if record.error else TrialState.COMPLETE
        return self._frozen(state, record.params, values.get(end), _attributes(record), values)

    def _frozen(
        self,
        state: TrialState,
        params: Mapping[str, Any],
        value: float | None,
        attributes: dict[str, Any],
        intermediate_values: dict[int, float],
    ) -> FrozenTrial:
        return create_trial(
            state=state,
            params=dict(params),
            distributions=self._distributions,
            value=value if state == TrialState.COMPLETE else None,
            user_attrs=attributes,
            intermediate_values=intermediate_values,
        )


def _attributes(record: TrialRecord) -> dict[str, Any]:
    """What a study keeps of a trial beside its parameters and values."""
    attributes: dict[str, Any] = {"trial": record.number, "source": record.source}
    if record.seed_point is not None:
        attributes["seed_point"] = record.seed_point
    if record.status != "unfinished":
        attributes |= {"status": record.status, "num_samples_seen": record.samples, "fidelity": record.last.get("fidelity")}
    elif record.stopped_at is not None:
        stop = record.reports[record.stopped_at]
        attributes |= {"status": "stopped", "num_samples_seen": record.stopped_at, "fidelity": stop.get("fidelity")}
    return attributes


def _open_journal(path: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.create_study(storage=storage, study_name="maskpro", direction="minimize", load_if_exists=True)
