"""When a trial is stopped early, as Optuna pruners: a study holds every trial's reports, and so all that they judge by."""

from __future__ import annotations

from collections.abc import Callable

from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from maskpro.errors import MaskproError

# User attribute of a trial that runs a seed point.
SEED_POINT = "seed_point"


class SuccessiveHalving(BasePruner):
    """ASHA's stopping rule (Li et al. 2020, algorithm 2, in the variant that stops instead of pausing).

    At a rung, a trial goes on if its value is among the best `n // reduction_factor` of the n values that the rung holds,
    its own among them. Departures from Ray's and Optuna's schedulers, which is why neither is used:

    - a rung judges only once it holds `reduction_factor` values: before, whoever comes second with a worse value would be
      stopped on the evidence of one trial;
    - a rung holds what trials reported *there*: a late report never fills a lower rung with a better, later value;
    - seed points pass the first rung, where a large batch has made few steps and says little;
    - what a rung holds is read off the study, so it survives whatever the study survives.

    Args:
        first_rung: samples at the lowest rung; the next ones lie at `reduction_factor` times the one before.
        max_samples: where a trial ends by itself.
    """

    def __init__(self, *, first_rung: int, max_samples: int, reduction_factor: int):
        self.reduction_factor = reduction_factor
        self.rungs = []
        rung = first_rung
        while rung < max_samples:
            self.rungs.append(rung)
            rung *= reduction_factor

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether `trial` ends at its last report."""
        step = trial.last_step
        if step not in self.rungs or (step == self.rungs[0] and SEED_POINT in trial.user_attrs):
            return False
        # Of two equal values the earlier trial's counts as better: trials that change nothing all tie.
        rung = [
            (other.intermediate_values[step], other.number)
            for other in study.get_trials(deepcopy=False)
            if step in other.intermediate_values
        ]
        own = (trial.intermediate_values[step], trial.number)
        better = sum(value < own for value in rung)
        return len(rung) >= self.reduction_factor and better >= len(rung) // self.reduction_factor


def _asha(report_samples: int, max_samples: int, reduction_factor: int) -> BasePruner:
    return SuccessiveHalving(first_rung=report_samples, max_samples=max_samples, reduction_factor=reduction_factor)


def _median(report_samples: int, max_samples: int, reduction_factor: int) -> BasePruner:
    return MedianPruner(n_startup_trials=reduction_factor, n_warmup_steps=report_samples + 1, n_min_trials=reduction_factor)


def _none(report_samples: int, max_samples: int, reduction_factor: int) -> BasePruner:
    return NopPruner()


# Each makes a pruner of (report_samples, max_samples, reduction_factor).
SCHEDULERS: dict[str, Callable[[int, int, int], BasePruner]] = {"asha": _asha, "median": _median, "none": _none}


def make_pruner(scheduler: str, *, report_samples: int, max_samples: int, reduction_factor: int) -> BasePruner:
    """The early stopping of a search.

    Raises:
        MaskproError: no such scheduler.
    """
    if scheduler not in SCHEDULERS:
        raise MaskproError(f"scheduler is {scheduler!r}; allowed: {', '.join(SCHEDULERS)}")
    return SCHEDULERS[scheduler](report_samples, max_samples, reduction_factor)
