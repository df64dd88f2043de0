"""All figures of an experiment.

python -m analysis.plots results/A   writes results/A/figures/*.png
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.experiment import OpenedExperiment, judged_trials
from analysis.figures.learning import best_so_far, fidelity_against_cost, learning_curves, pareto_front
from analysis.figures.masks import dense_curve, layer_changes, timestep_losses
from analysis.figures.parameters import importances, parallel_coordinates, parameter_importance, slices
from analysis.figures.theme import LIGHT, Theme
from maskpro.commands.running import run_command
from maskpro.errors import MaskproError
from maskpro.schedule.history import COMMON_FIDELITY, SHARE

_NONE_COUNTS = "no trial has left min_sparse_share of the multiply-adds sparse"


def all_figures(experiment: OpenedExperiment, *themes: Theme) -> tuple[list[dict[str, Figure]], dict[str, str]]:
    """The figures of an experiment by name, for each theme; and for figures that can't be drawn, name to reason.

    Raises:
        MaskproError: a file in its folder is broken.
    """
    trials, curves = comparable(experiment.trials), comparable(experiment.curves)
    layers, timesteps = experiment.layers, experiment.timesteps
    parameters = {name: value for name, value in experiment.searched_parameters.items() if name in trials.columns}
    best, marks, curve = experiment.best_trial, experiment.rungs, experiment.dense_curve
    least = experiment.history.min_sparse_share
    counting = trials if least is None or SHARE not in trials else trials[trials[SHARE] >= least]
    missing: dict[str, str] = {}
    no_reports = "no trial without a failure has reported a fidelity" if judged_trials(trials).empty else ""
    no_parameters = no_reports or ("" if parameters else "no parameter was searched")
    found = cache(lambda: importances(trials, parameters))  # computed once for all themes
    drawn: tuple[tuple[str, str, Callable[[Theme], Figure]], ...] = (
        (
            "best_so_far",
            no_reports or ("" if len(judged_trials(counting)) else _NONE_COUNTS),
            lambda theme: best_so_far(counting, curves, theme=theme),
        ),
        ("learning_curves", no_reports, lambda theme: learning_curves(trials, curves, best=best, rungs=marks, theme=theme)),
        (
            "learning_curves_by_time",
            no_reports,
            lambda theme: learning_curves(trials, curves, by="seconds", best=best, theme=theme),
        ),
        ("fidelity_against_cost", no_reports, lambda theme: fidelity_against_cost(trials, theme=theme)),
        ("parallel_coordinates", no_parameters, lambda theme: parallel_coordinates(trials, parameters, theme=theme)),
        ("slices", no_parameters, lambda theme: slices(trials, parameters, theme=theme)),
        ("parameter_importance", no_parameters, lambda theme: parameter_importance(found(), theme=theme)),
        (
            "layer_changes",
            "" if len(layers) else "no promoted mask with a layers.csv",
            lambda theme: layer_changes(layers, theme=theme),
        ),
        (
            "dense_curve",
            "" if curve["fidelity"].notna().any() else "no promoted mask with a dense_curve.csv",
            lambda theme: dense_curve(curve, learned=(experiment.best_config or {}).get("fidelity"), theme=theme),
        ),
    )
    # A kind of network without timesteps has no such figure, and lacks none.
    if len(timesteps) or experiment.final_evaluation is None:
        no_evaluation = "" if len(timesteps) else "no final evaluation with losses by timestep"
        drawn += (("timestep_losses", no_evaluation, lambda theme: timestep_losses(timesteps, theme=theme)),)
    if SHARE in trials:
        front, chosen = experiment.pareto_front, experiment.promoted
        no_front = "" if len(front) else "no trial has run to its full budget"
        drawn += (("pareto_front", no_front, lambda theme: pareto_front(trials, front, promoted=chosen, theme=theme)),)
    figures: list[dict[str, Figure]] = [{} for _ in themes]
    for name, why_not, draw in drawn:
        try:
            if why_not:
                raise MaskproError(why_not)
            for place, theme in zip(figures, themes, strict=True):
                place[name] = draw(theme)
        except MaskproError as error:
            missing[name] = str(error)
    return figures, missing


def comparable(table: pd.DataFrame) -> pd.DataFrame:
    """Trials or reports with fidelities that can be compared.

    In a search of num_dense a trial's own fidelity relates to an initial mask of more or fewer layers than another's.
    `common_fidelity` relates to the initial mask of num_dense 0, and takes its place where that is among the values.
    """
    if COMMON_FIDELITY not in table or table[COMMON_FIDELITY].isna().all():
        return table
    return table.assign(fidelity=table[COMMON_FIDELITY].where(table["fidelity"].notna()))


def main(experiment: Path) -> None:
    """Write the figures of an experiment into its folder `figures/`."""
    (figures,), missing = all_figures(OpenedExperiment(experiment), LIGHT)
    (experiment / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        path = experiment / "figures" / f"{name}.png"
        figure.savefig(path, dpi=120)
        print(path)
    for name, reason in missing.items():
        print(f"not drawn: {name} ({reason})")


if __name__ == "__main__":
    run_command(main)
