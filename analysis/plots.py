"""Figures of an experiment.

python -m analysis.plots results/A   writes results/A/figures/*.png
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.trials import load_curves, load_trials
from maskpro.cli import run_command

# Okabe and Ito's colours, which colour-blind people can tell apart.
_SEED, _SUGGESTED, _BEST = "#0072B2", "#999999", "#D55E00"


def learning_curves(trials: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Recovery of every trial against the samples it has seen; early-stopped trials end early."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes: Axes = figure.subplots()
    # As promotion chooses: among the trials that ran to their budget, where there are any.
    completed = trials[trials["status"] == "completed"]
    best = (trials if completed.empty else completed).nsmallest(1, "val_loss")["trial_id"].squeeze()
    for trial in trials.itertuples():
        curve = curves[curves["trial_id"] == trial.trial_id]
        is_seed = pd.notna(trial.seed_point)
        color = _BEST if trial.trial_id == best else _SEED if is_seed else _SUGGESTED
        axes.plot(
            curve["num_samples_seen"], curve["recovery"], color=color, linewidth=2.5 if trial.trial_id == best else 1.2
        )
        if len(curve):
            end = curve.iloc[-1]
            marker = "o" if trial.status == "completed" else "x"
            axes.plot(end["num_samples_seen"], end["recovery"], marker, color=color, markersize=6)
            if is_seed:  # the others are too many to name
                name = f"  seed point {trial.seed_point}"
                axes.annotate(name, (end["num_samples_seen"], end["recovery"]), fontsize=8, va="center")
    for color, label in ((_BEST, "best trial"), (_SEED, "seed point"), (_SUGGESTED, "suggested by the searcher")):
        axes.plot([], [], color=color, label=label)
    for marker, label in (("o", "ran to its budget"), ("x", "stopped early or failed")):
        axes.plot([], [], marker, color="black", label=label)
    axes.set(title="Learning curves", xlabel="calibration samples seen", ylabel="recovery on validation (1 = dense)")
    axes.legend(fontsize=8)
    axes.margins(x=0.15)
    return figure


def best_so_far(trials: pd.DataFrame) -> Figure:
    """The best recovery against the samples spent, trial after trial in the order of their start."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes: Axes = figure.subplots()
    spent = trials["num_samples_seen"].cumsum()
    axes.step(spent, trials["recovery"].cummax(), where="post", color=_BEST, label="best so far")
    for color, label, chosen in (
        (_SEED, "seed point", trials["seed_point"].notna()),
        (_SUGGESTED, "suggested by the searcher", trials["seed_point"].isna()),
    ):
        axes.plot(spent[chosen], trials.loc[chosen, "recovery"], "o", color=color, label=label)
    axes.set(title="Search progress", xlabel="calibration samples spent", ylabel="recovery on validation (1 = dense)")
    axes.legend(fontsize=8)
    return figure


def main(experiment: Path) -> None:
    """Write the figures of an experiment into its folder `figures/`."""
    trials = load_trials(experiment)
    figures = {"learning_curves": learning_curves(trials, load_curves(experiment)), "best_so_far": best_so_far(trials)}
    (experiment / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        path = experiment / "figures" / f"{name}.png"
        figure.savefig(path, dpi=120)
        print(path)


if __name__ == "__main__":
    run_command(main)
