"""Which ended trials of a search a suggestion comes from, and the values by which it compares them."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest

import optuna
from optuna.trial import FrozenTrial, TrialState

# Trials that a rung must have, beyond one for each searched parameter, before suggestions come from its values: the
# setting of BOHB's authors (Falkner et al. 2018, N_min + 2 with N_min = d + 1).
_MORE_THAN_PARAMETERS = 3


class ComparedTrials:
    """The ended trials of a study, ranked.

    Suggestions come from the values of one rung, as in BOHB (Falkner et al. 2018, section 3.2): the highest one that has
    enough trials. Last values can't be compared: whatever was promoted first has the lowest one, as it has seen most
    samples. Trials that stopped below that rung count as the worst of all, and failed ones come last. A Gaussian process
    would suggest them again if they were left out. And beside a failed trial's own value, a multiple of all others, it
    would see no difference between the others.

    Of more than `window` ended trials, suggestions come from the newest and from the best of the others, half of each.

    Args:
        rungs: samples at which trials are compared; empty: last values are compared.
        num_parameters: number of searched parameters.
        directions: of the objectives; where there are several, neither rungs nor values at them count.
        window: number of ended trials that a suggestion comes from.
    """

    def __init__(
        self, study: optuna.Study, *, rungs: Sequence[int], num_parameters: int, directions: Sequence[str], window: int
    ):
        self._study = study
        self._has_one_objective = len(directions) == 1
        self._rungs = rungs if self._has_one_objective else ()
        self._enough = num_parameters + _MORE_THAN_PARAMETERS
        self._signs = [1 if direction == "minimize" else -1 for direction in directions]
        self._window = window
        # (value, place in the study) of trials that have not failed, best first, at each rung or by each objective.
        self._ranked: dict[int, list[tuple[float, int]]] = {key: [] for key in self._rungs or range(len(directions))}

    def add(self, trial: FrozenTrial, place: int) -> None:
        """A trial has ended; it stands at that place in the study."""
        for key, value in self._values(trial).items():
            insort(self._ranked[key], (value, place))

    def remove(self, trial: FrozenTrial, place: int) -> None:
        """A trial that was added will be added anew with other values."""
        for key, value in self._values(trial).items():
            self._ranked[key].remove((value, place))

    def _values(self, trial: FrozenTrial) -> dict[int, float]:
        if trial.state != TrialState.COMPLETE or _has_failed(trial):
            return {}
        if self._rungs:
            return {rung: value for rung, value in trial.intermediate_values.items() if rung in self._ranked}
        return {key: sign * value for key, (sign, value) in enumerate(zip(self._signs, trial.values, strict=True))}

    @contextmanager
    def in_study(self) -> Iterator[None]:
        """In the block the study has these trials alone, each with the value by which it is compared."""
        told = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        rung = self._rung()
        hidden = []
        if len(told) > self._window:
            places = self._places(told, rung)
            hidden = [trial for trial in told if trial.number not in places]
            told = [trial for trial in told if trial.number in places]
        values = [list(trial.values) for trial in told]
        compared = _compared(told, rung) if self._has_one_objective else values
        try:
            for trial, value in zip(told, compared, strict=True):
                trial.values = value
            for trial in hidden:
                trial.state = TrialState.FAIL  # which no sampler looks at
            yield
        finally:
            for trial, value in zip(told, values, strict=True):
                trial.values = value
            for trial in hidden:
                trial.state = TrialState.COMPLETE

    def _rung(self) -> int:
        """The highest rung with enough trials; 0: there are no rungs."""
        filled = [rung for rung in self._rungs if len(self._ranked[rung]) >= self._enough]
        return max(filled, default=min(self._rungs, default=0))

    def _places(self, told: Sequence[FrozenTrial], rung: int) -> set[int]:
        places = {trial.number for trial in told[self._window // 2 - self._window :]}
        rankings = [self._ranked[rung]] if self._rungs else list(self._ranked.values())
        for entries in zip_longest(*rankings):
            for entry in entries:
                if entry is not None and len(places) < self._window:
                    places.add(entry[1])
        return places


def _compared(told: Sequence[FrozenTrial], rung: int) -> list[list[float]]:
    """The value of each trial at a rung, and the worst one of those that stopped below it or failed."""
    last = [trial.value or 0.0 for trial in told]  # a completed trial has one
    values = [_value_at(rung, trial.intermediate_values, value) for trial, value in zip(told, last, strict=True)]
    reached = [max(trial.intermediate_values, default=rung) for trial in told]
    behind = {place for place, trial in enumerate(told) if _has_failed(trial) or reached[place] < rung}
    worst = max((value for place, value in enumerate(values) if place not in behind), default=0.0)
    ordered = sorted(behind, key=lambda place: (_has_failed(told[place]), -reached[place], last[place]))
    for rank, place in enumerate(ordered, 1):
        values[place] = worst * (1 + 1e-12 * rank)  # still in order, for TPE
    return [[value] for value in values]


def _has_failed(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("status") == "failed")


def _value_at(rung: int, values: Mapping[int, float], last: float) -> float:
    """The last value up to a rung; a trial of a warm start may have reports at other samples only, or none."""
    if not rung:
        return last
    nearest = max((samples for samples in values if samples <= rung), default=min(values, default=rung))
    return values.get(nearest, last)
