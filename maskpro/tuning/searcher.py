"""The search algorithm and the early-stopping scheduler of a search."""

from __future__ import annotations

from typing import Any

import optuna
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

METRIC = "val_loss"
TIME_ATTRIBUTE = "num_samples_seen"

# Random trials before TPE begins, where a space brings no seed points.
_STARTUP_TRIALS = 5


def make_searcher(seed_points: tuple[dict[str, Any], ...], seed: int) -> OptunaSearch:
    """Optuna's multivariate TPE; the seed points are suggested first and stand in for its random start-up trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    points = [dict(point) for point in seed_points]
    sampler = optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=len(points) or _STARTUP_TRIALS, multivariate=True, constant_liar=True
    )
    return OptunaSearch(metric=METRIC, mode="min", points_to_evaluate=points or None, sampler=sampler)


def make_scheduler(*, report_samples: int, max_samples: int, reduction_factor: int) -> ASHAScheduler:
    """ASHA (Li et al. 2020) on samples seen, first rung at the first report."""
    return ASHAScheduler(
        time_attr=TIME_ATTRIBUTE,
        metric=METRIC,
        mode="min",
        grace_period=report_samples,
        max_t=max_samples,
        reduction_factor=reduction_factor,
        brackets=1,
        # A trial ends itself at its budget; stopping it here would count it as stopped early.
        stop_last_trials=False,
    )
