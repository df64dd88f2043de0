"""The trials of a search as a table; imports neither Ray nor torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from maskpro.schedule.history import COMMON_FIDELITY, METRIC, SHARE, TrialRecord
from maskpro.schedule.ranking import pareto_front

# Figures of a trial's mask with the lowest validation error.
FIGURES = ("fidelity", METRIC, "recovery", "loss_improvement", "val_loss")
# The same of a search of num_dense, whose other trials lack them.
OF_SHARES = (SHARE, COMMON_FIDELITY)


def single_figures(table: pd.DataFrame) -> pd.DataFrame:
    """The table without columns that hold a figure for each timestep, set or part."""
    return table.loc[:, ["_by_" not in str(name) for name in table.columns]]


def tabulate_trials(parameters: Mapping[str, Any], records: Sequence[TrialRecord]) -> pd.DataFrame:
    """A row per trial, in the order of their start; `parameters` maps fixed parameters to their values.

    Status: completed (ran to its budget), stopped (early, by the scheduler), failed, or unfinished (it runs, or resumes
    with the search).
    """
    rows = []
    reported = [name for name in OF_SHARES if any(name in record.last for record in records)]
    for record in records:
        figures = {} if record.failure else record.last
        rows.append(
            {
                "trial": record.number,
                "trial_id": record.name,
                **{name: record.params.get(name, value) for name, value in parameters.items()},
                "status": record.status,
                "num_samples_seen": record.samples,
                "num_samples_trained": record.trained,
                **{name: figures.get(name, math.nan) for name in FIGURES},
                **{name: record.last.get(name, math.nan) for name in reported},
                "seconds": record.last.get("seconds", math.nan),
                "seed": record.seed,
                "source": record.source,
                "seed_point": record.seed_point,
                "failure": record.failure,
            }
        )
    table = pd.DataFrame(rows)
    numbers = dict.fromkeys((*FIGURES, *reported, "seconds"), "float64")
    return table.astype({"seed_point": "Int64", **numbers}) if rows else table


def tabulate_front(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """A row per trial of the Pareto front of a search of num_dense, the largest share of sparse multiply-adds first."""
    columns = ["trial", "num_dense", SHARE, METRIC, COMMON_FIDELITY]
    rows = [{**record.params, **record.last, "trial": record.number} for record in pareto_front(records)]
    return pd.DataFrame(rows).reindex(columns=columns).dropna(axis=1, how="all")
