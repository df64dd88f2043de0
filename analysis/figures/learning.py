"""The trials' results against samples and seconds, and against what stays sparse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from analysis.experiment import judged_trials
from analysis.figures.theme import FIDELITY_LABEL, Theme, lowest_shown, new_figure, themed
from maskpro.schedule.history import METRIC, SHARE, TrialRecord


@themed
def learning_curves(
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    *,
    theme: Theme,
    by: str = "num_samples_seen",
    best: str | None = None,
    rungs: Iterable[int] = (),
) -> Figure:
    """Fidelity of every trial by samples seen or by seconds, with crosses at early stops and lines at the rungs.

    `best` is the trial_id of the best trial; it is drawn over the others.
    """
    label = {"num_samples_seen": "calibration samples seen", "seconds": "seconds of training and validation"}[by]
    figure, axes = new_figure(f"Learning curves by {'samples' if by == 'num_samples_seen' else 'time'}")
    ax = axes[0, 0]
    for rung in rungs if by == "num_samples_seen" else ():
        ax.axvline(rung, color=theme.suggested, linewidth=0.7, linestyle=":")
    parts = dict(tuple(curves.groupby("trial_id")))
    # Lines are drawn kind by kind, not trial by trial, as a thousand artists take many seconds.
    kinds = {"suggested": (theme.suggested, 1.0), "seed point": (theme.seed, 1.0), "best trial": (theme.best, 2.2)}
    markers = {"ran to its budget": "o", "stopped early, failed or unfinished": "x"}
    lines: dict[str, list[Any]] = {kind: [] for kind in kinds}
    ends: dict[tuple[str, str], list[Any]] = {(kind, marker): [] for kind in kinds for marker in markers.values()}
    for trial in trials.itertuples():
        curve = parts.get(trial.trial_id)
        points = None if curve is None else curve[[by, "fidelity"]].dropna().to_numpy(float)
        if points is None or not len(points):
            continue
        is_seed = pd.notna(trial.seed_point)
        kind = "best trial" if trial.trial_id == best else "seed point" if is_seed else "suggested"
        lines[kind].append(points)
        ends[kind, "o" if trial.status == "completed" else "x"].append(points[-1])
        if is_seed:  # the others are too many to name
            color = kinds[kind][0]
            ax.annotate(f" seed {trial.seed_point}", points[-1], fontsize=7, va="center", color=color)
    for order, (kind, (color, width)) in enumerate(kinds.items(), 1):
        ax.add_collection(LineCollection(lines[kind], colors=color, linewidths=width, zorder=order), autolim=True)
        for marker in markers.values():
            places = np.array(ends[kind, marker]).reshape(-1, 2)
            ax.plot(places[:, 0], places[:, 1], marker, color=color, markersize=5, zorder=order)
    for kind, (color, _) in reversed(kinds.items()):
        ax.plot([], [], color=color, label=kind)
    for name, marker in markers.items():
        ax.plot([], [], marker, color=theme.ink, label=name)
    ax.set(xlabel=label, ylabel=FIDELITY_LABEL)
    ax.margins(x=0.1)  # room for the names of seed points
    # A curve that fell far at once would leave the others no room.
    shown = curves["fidelity"].dropna()
    shown = shown.clip(lower=shown.quantile(0.02))
    ax.set_ylim(bottom=(min(lowest_shown(shown, -1.0), 0.0) if len(shown) else 0.0) - 0.05)
    ax.legend(loc="lower right")
    return figure


@themed
def best_so_far(trials: pd.DataFrame, curves: pd.DataFrame, *, theme: Theme) -> Figure:
    """The fidelity of the best mask that was reported, by samples that all trials had spent; seed points are marked.

    The best mask is the one with the lowest val_error, as in promotion. A trial's fidelity is in units of its own initial
    mask's error. So with different initial masks another trial may have a higher fidelity.
    """
    figure, axes = new_figure("Best so far")
    ax = axes[0, 0]
    judged = trials[(trials["status"] != "failed") & trials["fidelity"].notna()]
    reports = curves[curves["trial_id"].isin(judged["trial_id"])].sort_values("num_samples_spent")
    is_best = reports[METRIC] == reports[METRIC].cummin()
    ax.step(
        reports["num_samples_spent"],
        reports["fidelity"].where(is_best).ffill(),
        where="post",
        color=theme.best,
        label="best so far",
        linewidth=2,
    )
    spent = judged["trial_id"].map(reports.groupby("trial_id")["num_samples_spent"].max())
    for color, marker, name, chosen in (
        (theme.seed, "s", "seed point", judged["seed_point"].notna()),
        (theme.suggested, "o", "suggested by the searcher", judged["seed_point"].isna()),
    ):
        ax.plot(spent[chosen], judged.loc[chosen, "fidelity"], marker, color=color, label=name, markersize=5)
    ax.set(xlabel="calibration samples spent by all trials", ylabel=FIDELITY_LABEL)
    ax.set_ylim(bottom=(lowest_shown(judged["fidelity"], -1.0) if len(judged) else 0.0) - 0.05)
    ax.legend(loc="lower right")
    return figure


@themed
def fidelity_against_cost(trials: pd.DataFrame, *, theme: Theme) -> Figure:
    """Each trial's fidelity against its seconds."""
    figure, axes = new_figure("Fidelity against cost")
    ax, judged = axes[0, 0], judged_trials(trials)
    for marker, color, label, chosen in (
        ("x", theme.suggested, "stopped early or unfinished", judged["status"] != "completed"),
        ("o", theme.best, "ran to its budget", judged["status"] == "completed"),
    ):
        ax.plot(
            judged.loc[chosen, "seconds"], judged.loc[chosen, "fidelity"], marker, color=color, label=label, markersize=5
        )
    ax.set(xlabel="seconds of training and validation", ylabel=FIDELITY_LABEL)
    ax.set_ylim(bottom=(lowest_shown(judged["fidelity"], -1.0) if len(judged) else 0.0) - 0.05)
    ax.legend(loc="lower right")
    return figure


@themed
def pareto_front(trials: pd.DataFrame, front: pd.DataFrame, *, promoted: TrialRecord | None, theme: Theme) -> Figure:
    """Each completed trial's error against the share of the multiply-adds in layers with a mask; the front as steps."""
    figure, axes = new_figure("Pareto front")
    ax, completed = axes[0, 0], trials[trials["status"] == "completed"]
    ax.plot(100 * completed[SHARE], completed[METRIC], "o", color=theme.suggested, label="ran to its budget", markersize=5)
    ax.step(100 * front[SHARE], front[METRIC], "-o", where="post", color=theme.seed, label="Pareto front", markersize=6)
    for point in front.to_dict("records"):
        place = (100 * point[SHARE], point[METRIC])
        ax.annotate(f"{point['num_dense']} dense", place, textcoords="offset points", xytext=(4, 5), fontsize=7)
    if promoted is not None:
        place = ([100 * promoted.last[SHARE]], [promoted.last[METRIC]])
        ax.plot(*place, "*", color=theme.best, label=f"promoted: trial {promoted.number}", markersize=13)
    ax.invert_xaxis()
    ax.margins(x=0.1)  # room for the last point's name
    ax.set(xlabel="% of the multiply-adds in layers with a mask", ylabel="val_error")
    ax.legend(loc="upper right")
    return figure
